//! `servin version`.

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::output;
use crate::template::Template;

/// Prints versions.
pub(crate) fn run(format: Option<&str>) -> Result<u8> {
    output::text(&text(format)?);
    Ok(0)
}

fn text(format: Option<&str>) -> Result<String> {
    let bad = |why: String| Error::Usage { what: format!("--format: {why}"), verb: "version".into() };
    match format {
        None | Some("") => {}
        Some("json") => return Ok(format!("{}\n", about())),
        Some(text) => {
            return Ok(Template::parse(text).and_then(|text| text.render(&about())).map_err(bad)? + "\n");
        }
    }
    Ok(format!(
        "Servin {}\n  guest protocol: {}\n  platform: {}/{}\n",
        env!("CARGO_PKG_VERSION"),
        servin_engine::GUEST_PROTOCOL,
        std::env::consts::OS,
        std::env::consts::ARCH,
    ))
}

/// With docker's names. There is no daemon: the server is this command.
fn about() -> Value {
    let own = json!({
        "Platform": { "Name": "Servin" },
        "Version": env!("CARGO_PKG_VERSION"),
        "GuestProtocol": servin_engine::GUEST_PROTOCOL,
        "Os": std::env::consts::OS,
        "Arch": servin_engine::image::Platform::native().architecture,
    });
    json!({ "Client": own, "Server": own })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_with_dockers_names() {
        let version = env!("CARGO_PKG_VERSION");
        let expected = format!("{version} {version} linux\n");
        assert_eq!(text(Some("{{.Client.Version}} {{.Server.Version}} {{.Server.Os}}")).unwrap(), expected);
        assert!(text(None).unwrap().starts_with(&format!("Servin {version}\n")));
        let json: Value = serde_json::from_str(&text(Some("json")).unwrap()).unwrap();
        assert_eq!(json["Client"]["Version"], version);
        assert!(text(Some("{{.Nope}}")).is_err());
    }
}
