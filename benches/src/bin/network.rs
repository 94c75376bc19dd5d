//! Measures a container's TCP beside `passt`'s; `scripts/bench.sh network` runs it in the nested host.
//!
//! ```text
//! network --servin PATH --passt PATH --address IP [--mib N] [--transfers N] [--exchanges N] [--json FILE]
//! ```

use std::io::{Error, Result};
use std::path::PathBuf;
use std::process::ExitCode;

use servin_benches::network::{self, Setup};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("network: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let (mut servin, mut passt, mut address, mut json) = (None, None, None, None);
    let (mut mib, mut transfers, mut exchanges) = (4, 3, 300);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| Error::other(format!("{arg} needs a value")));
        match arg.as_str() {
            "--servin" => servin = Some(PathBuf::from(value()?)),
            "--passt" => passt = Some(PathBuf::from(value()?)),
            "--address" => address = Some(value()?.parse().map_err(Error::other)?),
            "--mib" => mib = value()?.parse().map_err(Error::other)?,
            "--transfers" => transfers = value()?.parse().map_err(Error::other)?,
            "--exchanges" => exchanges = value()?.parse().map_err(Error::other)?,
            "--json" => json = Some(PathBuf::from(value()?)),
            _ => return Err(Error::other(format!("unknown argument {arg}"))),
        }
    }
    let missing = |what: &'static str| move || Error::other(format!("{what} is missing"));
    let data_root = std::env::temp_dir().join(format!("servin-network-{}", std::process::id()));
    let setup = Setup {
        servin: servin.ok_or_else(missing("--servin"))?,
        data_root: data_root.clone(),
        passt: passt.ok_or_else(missing("--passt"))?,
        address: address.ok_or_else(missing("--address"))?,
        mib,
        transfers,
        exchanges,
    };
    network::check(&setup.passt)?;
    let compared = network::compare(&setup);
    let _ = std::fs::remove_dir_all(&data_root);
    let compared = compared?;
    print!("{compared}");
    println!("{mib} MiB a transfer, {transfers} of them in each direction, {exchanges} exchanges");
    if let Some(path) = json {
        std::fs::write(path, serde_json::to_string_pretty(&compared)? + "\n")?;
    }
    Ok(())
}
