//! The `servin` command: containers that are real virtual machines.
//!
//! ```text
//! args (what was typed) -> spec (what it means) -> verbs (what is done, by servin-engine) -> output
//! ```

// Where the engine is not, most of what is typed is refused: nobody reads its arguments.
#[cfg_attr(windows, allow(dead_code, unused_imports))]
mod args;
#[cfg(any(test, windows))]
#[cfg_attr(unix, allow(dead_code))]
mod elsewhere;
#[cfg_attr(windows, allow(dead_code))]
mod error;
#[cfg(unix)]
mod filter;
#[cfg_attr(windows, allow(dead_code))]
mod finding;
#[cfg(unix)]
mod human;
#[cfg(unix)]
mod keys;
#[cfg(unix)]
mod listing;
#[cfg_attr(windows, allow(dead_code))]
mod output;
#[cfg(unix)]
mod session;
#[cfg(unix)]
mod spec;
#[cfg(unix)]
mod template;
#[cfg(unix)]
mod terminal;
#[cfg(unix)]
mod verbs;

use std::process::ExitCode;
use std::time::Instant;

#[cfg(windows)]
use elsewhere as verbs;

fn main() -> ExitCode {
    let began = Instant::now();
    // On Linux a monitor is forked.
    #[cfg(target_os = "macos")]
    if let [_, word, level] = &std::env::args_os().collect::<Vec<_>>()[..]
        && word == servin_engine::monitor::HANDED
    {
        let level = level.to_str().and_then(|level| level.parse().ok());
        output::start_log_at(level.unwrap_or(log::LevelFilter::Error));
        return ExitCode::from(servin_engine::monitor::serve_handed());
    }
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
