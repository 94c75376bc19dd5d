//! The `servin` command.
fn main() {}
