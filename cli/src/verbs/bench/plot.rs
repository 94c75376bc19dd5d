//! The picture of a report: how first bytes are distributed, and where the time goes.

use std::fmt::Write;

use super::report::{Report, Series};

const WIDTH: f64 = 760.0;
const LEFT: f64 = 190.0;
/// Height of a distribution, and of a bar of phases.
const CURVE: f64 = 150.0;
const BAR: f64 = 22.0;
const COLOURS: [&str; 5] = ["#4878a8", "#78a848", "#d8a030", "#b85450", "#8868a8"];
const PHASES: [&str; 5] =
    ["until VM created", "until kernel entered", "until init", "until first byte", "until exit"];

/// An SVG document.
pub(super) fn draw(report: &Report) -> String {
    let drawn: Vec<&Series> = report.series.iter().filter(|series| !series.samples.is_empty()).collect();
    let most = drawn
        .iter()
        .flat_map(|series| series.clocks.iter().map(|(_, summary)| summary.most))
        .fold(1e-3, f64::max);
    let x = |ms: f64| LEFT + ms / most * (WIDTH - LEFT - 20.0);
    let bars = CURVE + 90.0;
    let height = bars + drawn.len() as f64 * (BAR + 8.0) + 60.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"20\">share of runs with their first byte by then</text>\n"
    );
    // Writing to a string does not fail.
    for (series, colour) in drawn.iter().zip(COLOURS.iter().cycle()) {
        let mut times: Vec<f64> = series.samples.iter().map(|sample| sample.first_byte).collect();
        times.sort_by(f64::total_cmp);
        let mut line = format!("M{:.1},{:.1}", x(0.0), 30.0 + CURVE);
        for (count, time) in (1..).zip(&times) {
            let y = 30.0 + CURVE * (1.0 - f64::from(count) / times.len() as f64);
            let _ = write!(line, " H{:.1} V{y:.1}", x(*time));
        }
        let _ = writeln!(svg, "<path d=\"{line}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>");
    }
    for tick in 0..=5 {
        let ms = most * f64::from(tick) / 5.0;
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{ms:.1} ms</text>",
            x(ms),
            48.0 + CURVE
        );
    }
    let _ = writeln!(svg, "<text x=\"10\" y=\"{:.1}\">phases of the median run</text>", bars - 10.0);
    for (row, (series, colour)) in (0_u32..).zip(drawn.iter().zip(COLOURS.iter().cycle())) {
        let y = bars + f64::from(row) * (BAR + 8.0);
        let _ = writeln!(
            svg,
            "<text x=\"10\" y=\"{:.1}\" fill=\"{colour}\">{}</text>",
            y + 15.0,
            escaped(&series.name())
        );
        let mut from = 0.0;
        for ((_, summary), colour) in series.clocks.iter().zip(COLOURS) {
            let to = summary.p50.max(from);
            let _ = writeln!(
                svg,
                "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>",
                x(from),
                x(to) - x(from)
            );
            from = to;
        }
    }
    for ((phase, colour), at) in PHASES.iter().zip(COLOURS).zip(0_u32..) {
        let left = 10.0 + f64::from(at) * 148.0;
        let _ = writeln!(
            svg,
            "<rect x=\"{left}\" y=\"{:.1}\" width=\"10\" height=\"10\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"{:.1}\">{phase}</text>",
            height - 24.0,
            left + 14.0,
            height - 15.0
        );
    }
    svg + "</svg>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_with_runs_has_a_curve_and_a_bar_of_five_phases() {
        let svg = draw(&super::super::report::tests::report());
        assert_eq!((svg.matches("<path").count(), svg.matches(">warm</text>").count()), (1, 1));
        // The background, five phases, five in the legend.
        assert_eq!(svg.matches("<rect").count(), 11, "{svg}");
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n") && !svg.contains("NaN"));
    }
}
