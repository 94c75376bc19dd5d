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
    /// From there to there: the guest's kernel alone.
    pub entry_to_init_ms: f64,
    /// Exits to the host's kernel, those to the monitor among them.
    pub exits: u64,
    /// Exits to the monitor.
    pub exits_to_servin: u64,
    /// A monitor's own resident memory.
    pub monitor_mib: f64,
    /// Of it, what is not the program and its libraries.
    pub monitor_anonymous_mib: f64,
    /// What a monitor shares with no other process, the guest's memory among it.
    pub private_mib: f64,
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
            ("kernel entry to PID 1", median.init_started - median.kernel_entered, self.entry_to_init_ms),
        ] {
            if measured > limit {
                lines.push(format!("{name}: {measured:.2} virtual ms, the budget is {limit:.2}"));
            }
        }
        match &report.exits {
            None => lines.push("exits were not counted".into()),
            Some(exits) => {
                for (name, count, limit) in [
                    ("exits", exits.kernel_total(), self.exits),
                    ("exits to servin", exits.user_total(), self.exits_to_servin),
                ] {
                    if count > limit {
                        lines.push(format!("{name}: {count}, the budget is {limit}"));
                    }
                }
            }
        }
        let mut monitors = report.memory.iter().filter(|memory| memory.process == "monitor").peekable();
        if monitors.peek().is_none() {
            lines.push("the monitor's memory was not measured".into());
        }
        for memory in monitors {
            for (name, kib, limit) in [
                ("monitor's own memory", memory.own_kib, self.monitor_mib),
                ("monitor's own memory that is no file's", memory.anonymous_kib, self.monitor_anonymous_mib),
                ("memory shared with nobody", memory.private_kib, self.private_mib),
            ] {
                let mib = kib as f64 / 1024.0;
                if mib > limit {
                    lines.push(format!("{name}: {mib:.2} MiB, the budget is {limit:.2}"));
                }
            }
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
            entry_to_init_ms: 0.5,
            exits: 20,
            exits_to_servin: 10,
            monitor_mib: 8.0,
            monitor_anonymous_mib: 1.0,
            private_mib: 4.0,
        }
    }

    #[test]
    fn what_was_not_measured_exceeds_the_budget() {
        assert_eq!(Budget { entry_to_init_ms: 1.0, ..budget() }.exceeded(&report(5.0)).len(), 2);
    }

    #[test]
    fn each_figure_is_held_against_its_limit() {
        let mut report = report(10.5);
        report.exits = Some(Exits { kernel: vec![("io".into(), 21)], user: vec![("port".into(), 11)] });
        let monitor = |own_kib, anonymous_kib, private_kib| Memory {
            process: "monitor".into(),
            own_kib,
            anonymous_kib,
            file_kib: 0,
            guest_kib: 0,
            private_kib,
        };
        // Each of the two exceeds what the other does not.
        report.memory = vec![monitor(8193, 1024, 4096), monitor(8192, 1025, 4097)];
        let lines = budget().exceeded(&report);
        for name in ["first byte", "kernel entry to PID 1", "exits: 21", "exits to servin: 11"] {
            assert!(lines.iter().any(|line| line.starts_with(name)), "{name}: {lines:?}");
        }
        assert_eq!(lines.len(), 7, "{lines:?}");
    }
}
