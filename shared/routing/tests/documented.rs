//! `docs/policies.md` says of every policy what it does, what it needs, and which other decides when it passes.
#![allow(clippy::unwrap_used, reason = "tests")]

use fairlead_routing::{PolicyName, ScorerName, Settings, Strategy};

const DOC: &str = include_str!("../../../docs/policies.md");

/// The sections of the page that are named by a policy: name and text in one line.
fn sections() -> Vec<(&'static str, String)> {
    let mut sections = Vec::new();
    for part in DOC.split("\n### `").skip(1) {
        let (name, rest) = part.split_once("`\n").unwrap();
        let text = rest.split("\n## ").next().unwrap_or_default();
        sections.push((name, text.split_whitespace().collect::<Vec<_>>().join(" ")));
    }
    sections
}

#[test]
fn every_policy_has_its_section() {
    let sections = sections();
    for name in PolicyName::ALL {
        let found: Vec<_> = sections.iter().filter(|(section, _)| *section == name.as_str()).collect();
        let [(_, text)] = found[..] else { panic!("docs/policies.md has {} sections `{name}`", found.len()) };
        let strategy = Strategy::new(*name, &Settings::default());
        let fallback = match strategy.policy().fallback() {
            Some(fallback) => format!("Fallback: `{fallback}`"),
            None => "Fallback: none".to_owned(),
        };
        for part in ["Needs: ", &fallback, "Use it: "] {
            assert!(text.contains(part), "docs/policies.md, {name}: {part:?} is missing");
        }
    }
    for (section, _) in sections {
        assert!(PolicyName::ALL.iter().any(|name| name.as_str() == section), "no policy is called {section}");
    }
}

#[test]
fn every_scorer_has_its_row() {
    for name in ScorerName::ALL {
        assert!(DOC.contains(&format!("\n| `{name}` |")), "docs/policies.md: no row for {name}");
    }
}
