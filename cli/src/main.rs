//! The `servin` command: containers that are real virtual machines.
//!
//! ```text
//! args (what was typed) -> spec (what it means) -> verbs (what is done, by servin-engine) -> output
//! ```

mod args;
mod error;
mod human;
mod keys;
mod listing;
mod output;
mod session;
mod spec;
mod template;
mod terminal;
mod verbs;

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let began = Instant::now();
    match args::parse(std::env::args_os()) {
        Ok(args::Typed::Text(text)) => output::text(&text),
        Ok(args::Typed::Verb(global, verb)) => {
            output::start_log(&global);
            match verbs::run(&global, began, verb) {
                Ok(code) => ExitCode::from(code),
                Err(error) => output::failure(&error),
            }
        }
        Err(error) => output::failure(&error),
    }
}
