//! What was measured, as tables and as JSON.

use serde::Serialize;

use super::host::{LEFT_OUT, Memory};
use super::peer::Boots;
use super::sample::{CLOCKS, Sample, Start, Subject};
use super::stats::Summary;
use crate::error::{Error, Result};
use crate::listing;

/// Runs that started in one way, so many at a time.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Series {
    pub(super) start: Start,
    pub(super) concurrency: u32,
    /// Each clock's summary in milliseconds, by its name; none when no run counts.
    pub(super) clocks: Vec<(&'static str, Summary)>,
    /// Counted runs, in order.
    pub(super) samples: Vec<Sample>,
    /// Why runs do not count.
    pub(super) refused: Vec<String>,
    /// Seconds of the whole series.
    pub(super) wall_s: f64,
    pub(super) starts_per_second: f64,
    /// Processor time of a run, of command and monitor, guest included, where the host tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cpu_ms: Option<f64>,
}

impl Series {
    pub(super) fn new(
        start: Start,
        concurrency: u32,
        samples: Vec<Sample>,
        refused: Vec<String>,
        wall_s: f64,
        cpu_ms: Option<f64>,
    ) -> Self {
        let clocks = CLOCKS
            .iter()
            .filter_map(|(name, clock)| Some((*name, Summary::new(samples.iter().map(clock))?)))
            .collect();
        let starts_per_second = samples.len() as f64 / wall_s;
        Series { start, concurrency, clocks, samples, refused, wall_s, starts_per_second, cpu_ms }
    }

    /// The summary of a clock.
    pub(super) fn clock(&self, name: &str) -> Option<&Summary> {
        self.clocks.iter().find(|(other, _)| *other == name).map(|(_, summary)| summary)
    }

    /// For headings: `warm`, or `warm, 4 at a time`.
    pub(super) fn name(&self) -> String {
        match self.concurrency {
            1 => self.start.name().to_owned(),
            many => format!("{}, {many} at a time", self.start.name()),
        }
    }
}

/// Everything that was measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    version: &'static str,
    system: String,
    kernel: String,
    hypervisor: &'static str,
    image: String,
    flags: Vec<String>,
    pub(super) series: Vec<Series>,
    /// Of containers that stand still at the same time.
    memory: Vec<Memory>,
    /// Boots of one guest on our monitor and on others, if they were asked for.
    pub(super) against: Vec<Boots>,
    /// What this host does not tell, and why.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    left_out: &'static [&'static str],
}

impl Report {
    pub(super) fn new(
        subject: &Subject,
        hypervisor: &'static str,
        series: Vec<Series>,
        memory: Vec<Memory>,
    ) -> Self {
        let uname = rustix::system::uname();
        Report {
            version: env!("CARGO_PKG_VERSION"),
            system: uname.sysname().to_string_lossy().into_owned(),
            kernel: uname.release().to_string_lossy().into_owned(),
            hypervisor,
            image: subject.image.clone(),
            flags: subject.flags.iter().map(|flag| flag.to_string_lossy().into_owned()).collect(),
            series,
            memory,
            against: Vec::new(),
            left_out: LEFT_OUT,
        }
    }

    pub(super) fn json(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self);
        let text =
            text.map_err(|error| Error::Host { what: "write JSON".into(), source: error.into(), code: 1 })?;
        Ok(text + "\n")
    }

    /// Tables for people.
    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "servin {} on {} {}, {}: {} {}\n",
            self.version,
            self.system,
            self.kernel,
            self.hypervisor,
            self.image,
            self.flags.join(" ")
        );
        for series in &self.series {
            let heads = ["least", "p50", "p95", "p99", "most", "mean"];
            let mut lines = vec![
                std::iter::once(format!("{} (ms)", series.name())).chain(heads.map(str::to_owned)).collect(),
            ];
            for (name, summary) in &series.clocks {
                let Summary { least, p50, p95, p99, most, mean } = *summary;
                let figures = [least, p50, p95, p99, most, mean].map(|figure| format!("{figure:>8.2}"));
                lines.push(std::iter::once((*name).to_owned()).chain(figures).collect());
            }
            text += "\n";
            text += &listing::table(&lines);
            text += &format!(
                "{} runs, {} refused, {:.1} starts a second",
                series.samples.len(),
                series.refused.len(),
                series.starts_per_second
            );
            text +=
                &series.cpu_ms.map_or_else(String::new, |ms| format!(", {ms:.1} ms of processor time each"));
            text += "\n";
        }
        if !self.against.is_empty() {
            let heads = ["exec to the guest's word (ms)", "least", "p50", "p95", "most", "p50 to ours"];
            let ours = self.against.first().and_then(|boots| boots.token).map(|summary| summary.p50);
            let mut lines = vec![heads.map(str::to_owned).to_vec()];
            for boots in &self.against {
                let Some(Summary { least, p50, p95, most, .. }) = boots.token else { continue };
                let figures = [least, p50, p95, most].map(|figure| format!("{figure:>8.2}"));
                let ratio = ours.map_or_else(String::new, |ours| format!("{:>8.2}", p50 / ours));
                lines.push([vec![boots.monitor.name().to_owned()], figures.to_vec(), vec![ratio]].concat());
            }
            text += "\n";
            text += &listing::table(&lines);
            text += "the same kernel, initramfs and serial port, one processor, 128 MiB; in turns\n";
        }
        if !self.memory.is_empty() {
            let (lines, below) = Memory::table(&self.memory);
            text += "\n";
            text += &listing::table(&lines);
            text += &below;
        }
        if !self.left_out.is_empty() {
            text += &format!("\nleft out on {}, which does not tell it:\n", self.system);
            self.left_out.iter().for_each(|what| text += &format!("- {what}\n"));
        }
        text
    }

    /// What takes longer to its first byte than `budget` milliseconds, a line each. A series without counted runs does, too.
    pub(super) fn over(&self, budget: f64, percentile: u32) -> Vec<String> {
        self.series
            .iter()
            .filter_map(|series| match series.clock("first byte").map(|summary| summary.at(percentile)) {
                Some(measured) if measured <= budget => None,
                Some(measured) => Some(format!(
                    "over budget: {}: p{percentile} of the first byte is {measured:.2} ms, the budget is {budget:.2} ms",
                    series.name()
                )),
                None => Some(format!("over budget: {}: no run counts", series.name())),
            })
            .collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn report() -> Report {
        let sample = |at: f64| Sample {
            vm_created: at,
            kernel_entered: at + 1.0,
            init_started: at + 2.0,
            first_byte: at + 3.0,
            exit_code: at + 4.0,
        };
        let subject = Subject {
            servin: "/bin/servin".into(),
            data_root: "/data".into(),
            image: "servin/base".into(),
            flags: Vec::new(),
        };
        let samples = (0..20).map(|n| sample(f64::from(n))).collect();
        let warm = Series::new(Start::Warm, 1, samples, Vec::new(), 2.0, Some(7.5));
        let cold = Series::new(Start::Cold, 4, Vec::new(), vec!["it was a warm start".into()], 1.0, None);
        Report::new(
            &subject,
            "kvm_amd",
            vec![warm, cold],
            vec![Memory { monitor_kib: 2048, ..Memory::default() }],
        )
    }

    #[test]
    fn tables_and_json_tell_each_clock_and_the_memory() {
        let text = report().table();
        assert!(text.contains("20 runs, 0 refused, 10.0 starts a second, 7.5 ms"), "{text}");
        assert!(text.contains("cold, 4 at a time") && text.contains("2.00"), "{text}");
        assert!(
            text.contains("0 runs, 1 refused, 0.0 starts a second\n"),
            "what was not told is not there: {text}"
        );
        assert!(!text.contains("left out"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&report().json().unwrap()).unwrap();
        assert_eq!(json["series"][0]["clocks"][3][1]["p50"], 12.0);
        assert_eq!(json["series"][1]["refused"][0], "it was a warm start");
        assert_eq!(
            (json["series"][0].get("cpu_ms").is_some(), json["series"][1].get("cpu_ms")),
            (true, None)
        );
    }

    #[test]
    fn what_a_host_does_not_tell_is_left_out_by_name() {
        let report = Report { left_out: &["the weather: there is no window"], ..report() };
        let text = report.table();
        assert!(text.ends_with("which does not tell it:\n- the weather: there is no window\n"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
        assert_eq!(json["left_out"][0], "the weather: there is no window");
    }

    #[test]
    fn a_budget_is_exceeded_by_the_percentile_and_by_no_runs() {
        assert_eq!(report().over(21.0, 95).len(), 1, "the series without runs");
        assert_eq!(report().over(20.9, 95).len(), 2);
        assert_eq!(report().over(12.0, 50).len(), 1);
    }
}
