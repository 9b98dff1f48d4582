//! The README.

/// So that the example of the README is one that is built and run as its reader would.
#[test]
fn its_application_is_that_of_tests_embed() {
    let application = include_str!("../embed/src/main.rs");
    let example = format!("```rust,no_run\n{application}```\n");
    assert!(include_str!("../../README.md").contains(&example));
}
