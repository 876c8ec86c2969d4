//! `docs/configuration.md`.

use crate::schema::SectionDoc;
use crate::sections::Config;
use crate::setting::Setting;
use std::fmt::Write;

const HEAD: &str = "\
# Configuration

<!-- Generated from the types in shared/config. After a change there: FAIRLEAD_BLESS=1 cargo test -p fairlead-config -->

`fairlead gateway`, `fairlead scheduler` and `fairlead agent` read a YAML file given with `--config`. Every key has a
default unless it says otherwise, so a file holds only what differs. A key that does not exist, or a value that is not
possible, stops the start with a message that names the key, the value and what is allowed; `fairlead check FILE` says
the same without starting anything.

Times are written `200ms`, `10s`, `5m`, `1h`; a number alone is milliseconds. Sizes are written `64KiB`, `64MiB`,
`2GiB` (or `KB`, `MB`, `GB` for powers of ten); a number alone is bytes.

```yaml
identity: /etc/fairlead/gateway
gateway:
  listen: 0.0.0.0:8080
  scheduler: scheduler.internal:7400
  policy: cost
log:
  level: info
```
";

/// The reference of all keys, in Markdown.
pub fn reference_markdown() -> String {
    let mut out = String::from(HEAD);
    if let Some(top) = Config::section() {
        section(&mut out, "", "Top level", &top);
    }
    out
}

fn section(out: &mut String, path: &str, title: &str, doc: &SectionDoc) {
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "\n## {title}\n\n{}\n\n| key | default | allowed | meaning |\n|---|---|---|---|\n",
        doc.doc
    );
    let mut below = Vec::new();
    for key in &doc.keys {
        let default = match (&key.section, key.default.is_empty()) {
            (Some(section), _) if section.list || section.named => "none".to_owned(),
            (Some(_), _) => "below".to_owned(),
            (None, true) => "none".to_owned(),
            (None, false) => format!("`{}`", key.default),
        };
        let _ = writeln!(out, "| `{}` | {default} | {} | {} |", key.key, cell(&key.allowed), cell(&key.doc));
        if let Some(section) = &key.section {
            let path = if path.is_empty() { key.key.to_owned() } else { format!("{path}.{}", key.key) };
            let path = match (section.list, section.named) {
                (true, _) => format!("{path}[]"),
                (_, true) => format!("{path}.NAME"),
                _ => path,
            };
            below.push((path, section));
        }
    }
    for (path, doc) in below {
        section(out, &path, &format!("`{path}`"), doc);
    }
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
