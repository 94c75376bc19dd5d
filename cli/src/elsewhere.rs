//! The verbs on Windows, which the engine does not get to yet: what says something about the host is done, what needs
//! containers or images is refused by name.

use std::ffi::OsString;
use std::time::Instant;

use servin_vmm::{Error as VmError, hv};

use crate::args::{self, Global, Verb};
use crate::error::{Error, Result, code_of};
use crate::finding::{self, Finding, render};
use crate::output;

/// Does what was asked and gives the exit code.
pub(crate) fn run(_: &Global, _: Instant, verb: Verb) -> Result<u8> {
    let argv: Vec<OsString> = std::env::args_os().collect();
    act(verb, args::typed_first(&argv).unwrap_or("servin"))
}

fn act(verb: Verb, name: &str) -> Result<u8> {
    match verb {
        Verb::Doctor => {
            let findings = findings(finding::smallest_machine());
            output::text(&render(&findings));
            Ok(u8::from(findings.iter().any(|finding| !finding.fine)))
        }
        Verb::Version { format: Some(_) } => {
            Err(Error::NotBuilt { what: format!("version --format on {}", std::env::consts::OS), code: 1 })
        }
        Verb::Version { format: None } => {
            let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
            output::text(&format!("Servin {}\n  platform: {os}/{arch}\n", env!("CARGO_PKG_VERSION")));
            Ok(0)
        }
        _ => Err(Error::NoEngine { verb: name.to_owned(), os: std::env::consts::OS, code: code_of(name) }),
    }
}

fn findings(host: Result<hv::Caps, VmError>) -> Vec<Finding> {
    let engine = Finding::bad(
        "engine",
        format!("what makes containers of machines does not run on {} yet", std::env::consts::OS),
        "run containers on Linux or macOS; here the monitor can be embedded as a library (servin-vmm)",
    );
    vec![finding::hypervisor(host), engine]
}

#[cfg(test)]
mod tests {
    use servin_vmm::hv::Hypervisor;

    use super::*;

    #[test]
    fn verbs_that_need_the_engine_are_refused_by_name_with_dockers_codes() {
        for (words, code) in [(&["run", "image"][..], 125), (&["pull", "image"], 1), (&["ps"], 1)] {
            let argv = ["servin"].iter().chain(words).map(OsString::from);
            let Ok(args::Typed::Verb(_, verb)) = args::parse(argv) else { panic!("{words:?}") };
            let error = act(verb, words[0]).unwrap_err();
            assert_eq!(error.code(), code);
            assert!(
                error.to_string().starts_with(&format!("servin {} does not run on ", words[0])),
                "{error}"
            );
        }
    }

    #[test]
    fn the_doctor_says_what_the_hypervisor_answered_and_never_that_containers_run() {
        let text = render(&findings(Err(VmError::NoHypervisor { why: "switched off; switch it on".into() })));
        assert!(text.starts_with("FAIL  hypervisor  no hypervisor: switched off; switch it on\n"), "{text}");
        let caps = hv::fake::Fake::new().caps().clone();
        let text = render(&findings(Ok(caps)));
        assert!(text.starts_with("ok    hypervisor  fake: a machine can be made"), "{text}");
        assert!(text.ends_with("Containers cannot run here yet.\n"), "{text}");
    }
}
