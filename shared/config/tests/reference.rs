//! The committed reference is the one that follows from the types.

use fairlead_config::{Config, reference_markdown};

#[test]
fn the_committed_reference_is_current() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
    let want = reference_markdown();
    if std::env::var_os("FAIRLEAD_BLESS").is_some() {
        std::fs::write(file, &want).expect("docs/configuration.md can be written");
    }
    let have = std::fs::read_to_string(file).expect("docs/configuration.md can be read");
    assert!(
        have == want,
        "docs/configuration.md is not current: FAIRLEAD_BLESS=1 cargo test -p fairlead-config"
    );
}

#[test]
fn the_reference_example_is_a_configuration() {
    let text = reference_markdown();
    let example =
        text.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let config = Config::from_yaml(example).expect("the example is valid");
    assert_eq!(config.gateway.listen.port(), 8080);
    assert!(config.gateway.scheduler.is_some() && config.identity.is_some());
}
