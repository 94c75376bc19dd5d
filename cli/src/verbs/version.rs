//! `servin version`.

use crate::error::Result;
use crate::output;

/// Prints versions.
pub(crate) fn run() -> Result<u8> {
    let text = format!(
        "Servin {}\n  guest protocol: {}\n  platform: {}/{}\n",
        env!("CARGO_PKG_VERSION"),
        servin_engine::GUEST_PROTOCOL,
        std::env::consts::OS,
        std::env::consts::ARCH,
    );
    output::text(&text);
    Ok(0)
}
