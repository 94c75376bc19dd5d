//! The most that a run may cost. The figures are in `benches/budget.json`, and may only go down.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Report;

/// The budgets of both starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budgets {
    /// Of a start that boots the guest's kernel.
    pub cold: Budget,
    /// Of a start from a machine that has booted.
    pub warm: Budget,
}

impl Budgets {
    /// Reads the budgets.
    ///
    /// # Errors
    /// If the file cannot be read or holds none.
    pub fn read(path: &Path) -> io::Result<Self> {
        let text = std::fs::read_to_string(path)?;
        serde_json::from_str(&text).map_err(|error| io::Error::other(format!("{}: {error}", path.display())))
    }
}

/// Upper limits for the nested host under `-icount`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Virtual milliseconds from exec until the machine exists.
    pub vm_created_ms: f64,
    /// Until the first vCPU enters the kernel.
    pub kernel_entered_ms: f64,
    /// Until PID 1 says hello.
    pub init_started_ms: f64,
    /// Until the first byte of output is at servin's reader.
    pub first_byte_ms: f64,
    /// Until servin has ended.
    pub ended_ms: f64,
    /// Exits to the monitor.
    pub exits_to_servin: u64,
    /// The monitor's own resident memory.
    pub monitor_mib: f64,
}

impl Budget {
    /// What exceeds it, a line each. What was not measured, though the budget speaks of it, exceeds it too.
    pub fn exceeded(&self, report: &Report) -> Vec<String> {
        let mut lines = Vec::new();
        let median = &report.median;
        for (name, measured, limit) in [
            ("vm created", median.vm_created, self.vm_created_ms),
            ("kernel entered", median.kernel_entered, self.kernel_entered_ms),
            ("PID 1", median.init_started, self.init_started_ms),
            ("first byte at its reader", median.first_byte, self.first_byte_ms),
            ("exit code", median.ended, self.ended_ms),
        ] {
            if measured > limit {
                lines.push(format!("{name}: {measured:.2} virtual ms, the budget is {limit:.2}"));
            }
        }
        match report.exits.as_ref().map(super::Exits::user_total) {
            None => lines.push("exits were not counted".into()),
            Some(count) if count > self.exits_to_servin => {
                lines.push(format!("exits to servin: {count}, the budget is {}", self.exits_to_servin));
            }
            Some(_) => {}
        }
        match report.memory.iter().find(|memory| memory.process == "monitor") {
            None => lines.push("the monitor's memory was not measured".into()),
            Some(memory) if memory.own_kib as f64 > self.monitor_mib * 1024.0 => lines.push(format!(
                "monitor: {:.2} MiB of its own, the budget is {:.2}",
                memory.own_kib as f64 / 1024.0,
                self.monitor_mib
            )),
            Some(_) => {}
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::{Exits, Memory, Sample, Start};

    fn report(first_byte: f64) -> Report {
        let sample = Sample {
            vm_created: 1.0,
            kernel_entered: 2.0,
            init_started: 3.0,
            first_byte_inside: 4.0,
            first_byte,
            ended: 6.0,
        };
        Report::new(Vec::new(), Start::Cold, true, vec![sample]).unwrap()
    }

    fn budget() -> Budget {
        Budget {
            vm_created_ms: 10.0,
            kernel_entered_ms: 10.0,
            init_started_ms: 10.0,
            first_byte_ms: 10.0,
            ended_ms: 10.0,
            exits_to_servin: 10,
            monitor_mib: 8.0,
        }
    }

    #[test]
    fn what_was_not_measured_exceeds_the_budget() {
        assert_eq!(budget().exceeded(&report(5.0)).len(), 2);
    }

    #[test]
    fn each_figure_is_held_against_its_limit() {
        let mut report = report(10.5);
        report.exits = Some(Exits { kernel: Vec::new(), user: vec![("port".into(), 11)] });
        report.memory = vec![Memory {
            process: "monitor".into(),
            own_kib: 8193,
            anonymous_kib: 0,
            file_kib: 0,
            guest_kib: 0,
        }];
        let lines = budget().exceeded(&report);
        assert_eq!(lines.len(), 3, "{lines:?}");
    }
}
