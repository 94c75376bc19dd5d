//! Measures exits, queues, shares and sockets on this machine.
//!
//! ```text
//! devices [--seconds S] [--json FILE]
//! ```

use std::error::Error;
use std::time::Duration;

fn main() -> Result<(), Box<dyn Error>> {
    let (mut seconds, mut json) = (1.0, None);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--seconds" => seconds = value()?.parse()?,
            "--json" => json = Some(value()?),
            _ => return Err(format!("unknown argument {arg}").into()),
        }
    }
    let rates = servin_benches::devices::all(Duration::try_from_secs_f64(seconds)?)?;
    for rate in &rates {
        println!("{rate}");
    }
    if let Some(path) = json {
        std::fs::write(path, serde_json::to_string_pretty(&rates)? + "\n")?;
    }
    Ok(())
}
