//! What `servin doctor` finds, on every host.

use std::fmt::Write as _;

#[cfg(any(test, not(target_os = "linux")))]
use servin_vmm::{
    Error as VmError,
    hv::{self, Plan},
    layout, memory,
};

/// One line of the answer.
pub(crate) struct Finding {
    pub(crate) topic: &'static str,
    pub(crate) fine: bool,
    pub(crate) text: String,
    pub(crate) todo: Option<String>,
}

impl Finding {
    pub(crate) fn good(topic: &'static str, text: impl Into<String>) -> Self {
        Finding { topic, fine: true, text: text.into(), todo: None }
    }

    pub(crate) fn bad(topic: &'static str, text: impl Into<String>, todo: impl Into<String>) -> Self {
        Finding { topic, fine: false, text: text.into(), todo: Some(todo.into()) }
    }

    #[cfg(target_os = "linux")]
    pub(crate) fn and(mut self, todo: impl Into<String>) -> Self {
        self.todo = Some(todo.into());
        self
    }
}

/// Makes the smallest machine and takes it apart: some hosts refuse only then.
#[cfg(any(test, not(target_os = "linux")))]
pub(crate) fn smallest_machine() -> Result<hv::Caps, VmError> {
    let hypervisor = hv::open()?;
    let plan = Plan::new(memory::anonymous(layout::MIN_MEM_MIB)?, 1, layout::GSIS);
    hypervisor.create(&plan)?;
    Ok(hypervisor.caps().clone())
}

/// What the hypervisor says of itself, where its name is all that can be told apart.
#[cfg(any(test, not(target_os = "linux")))]
pub(crate) fn hypervisor(host: Result<hv::Caps, VmError>) -> Finding {
    match host {
        Ok(caps) => Finding::good(
            "hypervisor",
            format!("{}: a machine can be made, of up to {} CPUs", caps.name, caps.max_cpus),
        ),
        // What to do is in the reason, where there is something to be done.
        Err(error) => Finding::bad("hypervisor", crate::output::chain(&error), "see docs/backends.md"),
    }
}

/// The findings, and what they come to.
pub(crate) fn render(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let mark = if finding.fine { "ok  " } else { "FAIL" };
        let mut lines = finding.text.lines();
        let _ = writeln!(text, "{mark}  {:<11} {}", finding.topic, lines.next().unwrap_or_default());
        for line in lines {
            let _ = writeln!(text, "      {:<11} {line}", "");
        }
        if let Some(todo) = &finding.todo {
            let _ = writeln!(text, "      {:<11} -> {todo}", "");
        }
    }
    let able = findings.iter().all(|finding| finding.fine);
    text.push_str(if able { "Containers can run here.\n" } else { "Containers cannot run here yet.\n" });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_of_several_lines_stays_in_its_column() {
        let text = render(&[Finding::bad("guest", "none found; looked in:\n  /a\n  /b", "build it")]);
        let expected = "FAIL  guest       none found; looked in:\n                    /a\n                    /b\n                  -> build it\n";
        assert!(text.starts_with(expected), "{text}");
    }
}
