//! The examples run, and the documentation quotes them as they are.

#[path = "../examples/custom_policy.rs"]
mod custom_policy;
#[path = "../examples/embed.rs"]
mod embed;

#[test]
fn they_run() {
    custom_policy::main().unwrap();
    embed::main().unwrap();
}

#[test]
fn documentation_quotes_the_policy_as_it_is() {
    let example = include_str!("../examples/custom_policy.rs");
    let (_, rest) = example.split_once(": begin\n").unwrap();
    let (policy, _) = rest.split_once("// end\n").unwrap();
    let doc = include_str!("../docs/adding-a-policy.md");
    assert!(
        doc.contains(&format!("```rust\n{policy}```\n")),
        "docs/adding-a-policy.md quotes another text:\n{policy}"
    );
}
