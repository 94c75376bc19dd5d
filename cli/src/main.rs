//! The `servin` command: containers that are real virtual machines.
//!
//! ```text
//! args (what was typed) -> spec (what it means) -> verbs (what is done, by servin-engine) -> output
//! ```

// Where the engine is not, most of what is typed is refused: nobody reads its arguments.
#[cfg_attr(not(target_os = "linux"), allow(dead_code, unused_imports))]
mod args;
#[cfg(any(test, not(target_os = "linux")))]
#[cfg_attr(target_os = "linux", allow(dead_code))]
mod elsewhere;
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
mod error;
#[cfg(target_os = "linux")]
mod filter;
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
mod finding;
#[cfg(target_os = "linux")]
mod human;
#[cfg(target_os = "linux")]
mod keys;
#[cfg(target_os = "linux")]
mod listing;
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
mod output;
#[cfg(target_os = "linux")]
mod session;
#[cfg(target_os = "linux")]
mod spec;
#[cfg(target_os = "linux")]
mod template;
#[cfg(target_os = "linux")]
mod terminal;
#[cfg(target_os = "linux")]
mod verbs;

use std::process::ExitCode;
use std::time::Instant;

#[cfg(not(target_os = "linux"))]
use elsewhere as verbs;

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
