//! Samples, their medians, and how they are printed.

use serde::{Deserialize, Serialize};

use super::{Exits, Memory, Start};

/// The clocks of one run, in milliseconds since before servin's exec; those named `inside` are servin's own, which
/// begin when its process was made.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The machine exists.
    pub vm_created: f64,
    /// The first vCPU entered the kernel.
    pub kernel_entered: f64,
    /// PID 1 said hello.
    pub init_started: f64,
    /// The first byte of output reached servin.
    pub first_byte_inside: f64,
    /// The first byte of output reached whoever reads servin's.
    pub first_byte: f64,
    /// servin's process ended.
    pub ended: f64,
}

/// A clock of a sample, by its name in the report.
type Clock = (&'static str, fn(&Sample) -> f64);

/// The clocks in their order.
pub(super) const CLOCKS: [Clock; 6] = [
    ("vm created", |sample| sample.vm_created),
    ("kernel entered", |sample| sample.kernel_entered),
    ("PID 1", |sample| sample.init_started),
    ("first byte at servin", |sample| sample.first_byte_inside),
    ("first byte at its reader", |sample| sample.first_byte),
    ("exit code", |sample| sample.ended),
];

/// Everything that was measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// What the host is: kernel, hypervisor, settings.
    pub host: Vec<(String, String)>,
    /// How the runs started.
    pub start: Start,
    /// Whether a millisecond is a million instructions.
    pub instructions: bool,
    /// The counted runs, in order.
    pub samples: Vec<Sample>,
    /// The median of each clock.
    pub median: Sample,
    /// Exits of one more run; none where the kernel does not tell.
    pub exits: Option<Exits>,
    /// Resident memory of the processes of a container that stands still.
    pub memory: Vec<Memory>,
}

impl Report {
    /// A report of these samples; `None` if there are none.
    pub fn new(
        host: Vec<(String, String)>,
        start: Start,
        instructions: bool,
        samples: Vec<Sample>,
    ) -> Option<Self> {
        let middle = |clock: fn(&Sample) -> f64| {
            let mut values: Vec<f64> = samples.iter().map(clock).collect();
            values.sort_by(f64::total_cmp);
            let half = values.len() / 2;
            let upper = *values.get(half)?;
            let lower =
                if values.len().is_multiple_of(2) { *values.get(half.checked_sub(1)?)? } else { upper };
            Some((lower + upper) / 2.0)
        };
        let median = Sample {
            vm_created: middle(|sample| sample.vm_created)?,
            kernel_entered: middle(|sample| sample.kernel_entered)?,
            init_started: middle(|sample| sample.init_started)?,
            first_byte_inside: middle(|sample| sample.first_byte_inside)?,
            first_byte: middle(|sample| sample.first_byte)?,
            ended: middle(|sample| sample.ended)?,
        };
        Some(Self { host, start, instructions, samples, median, exits: None, memory: Vec::new() })
    }
}

/// The report for people.
pub fn table(report: &Report) -> String {
    let mut text = String::new();
    let unit =
        if report.instructions { "virtual ms (1 ms = 1 million instructions)" } else { "ms of wall time" };
    let clock = format!("clock of a {} start", report.start.name());
    text += &format!("\n{clock:<26}{:>10}{:>10}{:>10}{:>10}   {unit}\n", "median", "step", "least", "most");
    let mut before = 0.0;
    for (name, clock) in CLOCKS {
        let values = report.samples.iter().map(clock);
        let least = values.clone().fold(f64::INFINITY, f64::min);
        let most = values.fold(0.0, f64::max);
        let median = clock(&report.median);
        text += &format!("{name:<26}{median:>10.2}{:>10.2}{least:>10.2}{most:>10.2}\n", median - before);
        before = median;
    }
    if let Some(exits) = &report.exits {
        text += &format!(
            "\n{} exits to the host's kernel, {} of them to servin\n",
            exits.kernel_total(),
            exits.user_total()
        );
        for (name, count) in exits.kernel.iter().take(8) {
            text += &format!("  {count:>7}  {name}\n");
        }
        for (name, count) in exits.user.iter().take(6) {
            text += &format!("  {count:>7}  to servin: {name}\n");
        }
    }
    for memory in &report.memory {
        text += &format!(
            "\n{}: {:.2} MiB resident of its own ({:.2} anonymous, {:.2} files), and {:.1} MiB of guest memory; \
             {:.2} MiB of all that are shared with no other process\n",
            memory.process,
            memory.own_kib as f64 / 1024.0,
            memory.anonymous_kib as f64 / 1024.0,
            memory.file_kib as f64 / 1024.0,
            memory.guest_kib as f64 / 1024.0,
            memory.private_kib as f64 / 1024.0,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: f64) -> Sample {
        Sample {
            vm_created: at,
            kernel_entered: at + 1.0,
            init_started: at + 2.0,
            first_byte_inside: at + 3.0,
            first_byte: at + 4.0,
            ended: at + 5.0,
        }
    }

    #[test]
    fn the_median_is_the_middle_of_the_samples() {
        let report =
            Report::new(Vec::new(), Start::Cold, true, vec![sample(9.0), sample(1.0), sample(3.0)]).unwrap();
        assert_eq!(report.median, sample(3.0));
        let report = Report::new(Vec::new(), Start::Cold, true, vec![sample(4.0), sample(2.0)]).unwrap();
        assert_eq!(report.median, sample(3.0));
        assert!(Report::new(Vec::new(), Start::Cold, true, Vec::new()).is_none());
    }

    #[test]
    fn the_table_tells_each_clock_and_its_step() {
        let report = Report::new(Vec::new(), Start::Cold, true, vec![sample(10.0)]).unwrap();
        let text = table(&report);
        assert!(text.contains("vm created"), "{text}");
        assert!(
            text.lines().any(|line| line.starts_with("kernel entered")
                && line.contains("11.00")
                && line.contains("1.00")),
            "{text}"
        );
    }
}
