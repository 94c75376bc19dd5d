//! Warm starts: the first run of an image leaves a template, later ones clone it, and clones share nothing that must be
//! their own.

use std::collections::HashSet;
use std::time::{SystemTime, UNIX_EPOCH};

use servin_tests::machine::Servin;

const BASE: &str = "servin/base";

/// Whether a run with `--timing` was warm.
fn is_warm(stderr: &str) -> bool {
    let line = stderr.lines().find(|line| line.starts_with("timing: start")).expect("a line of the start");
    line.ends_with(" warm")
}

fn templates(servin: &Servin) -> usize {
    servin.go(&["vm", "images", "-q"]).text().lines().count()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_secs()
}

/// `SERVIN_CLONES` of them, else 100.
fn clones() -> usize {
    std::env::var("SERVIN_CLONES").ok().and_then(|text| text.parse().ok()).unwrap_or(100)
}

#[test]
fn the_second_run_of_an_image_is_warm_and_does_the_same() {
    let Some(servin) = Servin::new() else { return };
    let args = ["run", "--rm", "--timing", BASE, "sh", "-c", "echo hi; echo oops >&2; exit 7"];
    for warm in [false, true, true] {
        let outcome = servin.go(&args);
        outcome.expect(7, "hi\n");
        assert!(outcome.stderr.starts_with("oops\n"), "{outcome:?}");
        assert_eq!(is_warm(&outcome.stderr), warm, "{outcome:?}");
        assert_eq!(templates(&servin), 1);
    }
}

#[test]
fn no_warm_neither_leaves_a_template_nor_uses_one() {
    let Some(servin) = Servin::new() else { return };
    let cold = ["run", "--rm", "--no-warm", "--timing", BASE, "true"];
    assert!(!is_warm(&servin.go(&cold).stderr));
    assert_eq!(templates(&servin), 0);
    servin.go(&["run", "--rm", BASE, "true"]).expect(0, "");
    assert_eq!(templates(&servin), 1);
    assert!(!is_warm(&servin.go(&cold).stderr));
}

#[test]
fn templates_are_made_before_anybody_waits_for_them_and_made_anew() {
    let Some(servin) = Servin::new() else { return };
    let pull = ["vm", "images", "pull", "-m", "64m", BASE];
    let made = servin.go(&pull);
    assert!(made.text().contains(" made ("), "{made:?}");
    servin.go(&["ps", "-aq"]).expect(0, "");
    let again = servin.go(&pull);
    assert!(again.text().contains(" is up to date ("), "{again:?}");
    let first = servin.go(&["run", "--rm", "--timing", "-m", "64m", BASE, "true"]);
    assert!(is_warm(&first.stderr), "{first:?}");
    // Every template is today's.
    let keys = ["vm", "images", "-q", "--no-trunc"];
    let before = servin.go(&keys).text();
    let update = servin.go(&["vm", "images", "update"]);
    assert!(update.text().ends_with("Total reclaimed space: 0B\n"), "{update:?}");
    servin.go(&keys).expect(0, &before);

    servin.go(&["run", "-d", "--name", "box", "-m", "64m", BASE, "sleep", "1000"]);
    let status = ["vm", "status", "--format", "{{.Name}} {{.Status}} {{.CPUs}} {{.Memory}}"];
    servin.go(&status).expect(0, "box running 1 64MiB\n");
    servin.go(&["rm", "-f", "box"]);
    servin.go(&["vm", "status", "-q"]).expect(0, "");
    let config = servin.go(&["vm", "config", "--format", "{{.Setting}}={{.Value}}"]);
    let text = config.text();
    assert!(text.contains("\nwarm start=on\n") && !text.contains("hypervisor=none"), "{text}");
    let kernel = text.lines().find_map(|line| line.strip_prefix("kernel=")).unwrap();
    assert!(std::path::Path::new(kernel).is_file(), "{text}");
}

#[test]
fn a_traced_start_boots_and_tells_phases_accesses_and_initcalls() {
    let Some(servin) = Servin::new() else { return };
    servin.go(&["run", "--rm", BASE, "true"]).expect(0, "");
    let file = servin.folder().join("trace.json");
    servin.go(&["run", "--rm", "--trace", file.to_str().unwrap(), BASE, "echo", "hi"]).expect(0, "hi\n");
    let trace: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let of = |process: u64, thread: u64| -> Vec<&serde_json::Value> {
        let fits = |event: &&serde_json::Value| event["pid"] == process && event["tid"] == thread;
        events.iter().filter(fits).filter(|event| event["ph"] == "X").collect()
    };
    let (phases, accesses, initcalls) = (of(1, 1), of(1, 2), of(2, 1));
    assert_eq!(phases.len(), 5, "{phases:?}");
    let end = |event: &serde_json::Value| event["ts"].as_f64().unwrap() + event["dur"].as_f64().unwrap();
    assert!(phases.windows(2).all(|two| (end(two[0]) - two[1]["ts"].as_f64().unwrap()).abs() < 0.01));
    let name = |event: &&serde_json::Value| event["name"].as_str().unwrap().to_owned();
    assert!(accesses.len() > 20 && accesses.iter().any(|access| name(access).starts_with("write memory 0x")));
    let names: Vec<String> = initcalls.iter().map(name).collect();
    assert!(names.len() > 20 && names.iter().any(|name| name.contains("virtio")), "{names:?}");
    let refused = servin.go(&["run", "--rm", "--trace", "/nope/trace", BASE, "true"]);
    assert!(
        refused.code == Some(125) && refused.stderr.contains("make the trace /nope/trace"),
        "{refused:?}"
    );
    assert_eq!(servin.go(&["ps", "-aq"]).text(), "");
}

#[test]
fn another_machine_has_another_template_and_pruned_ones_are_made_again() {
    let Some(servin) = Servin::new() else { return };
    servin.go(&["run", "--rm", BASE, "true"]).expect(0, "");
    let other = servin.go(&["run", "--rm", "--timing", "-m", "256m", BASE, "true"]);
    assert!(!is_warm(&other.stderr), "{other:?}");
    assert_eq!(templates(&servin), 2);
    assert_eq!(servin.go(&["vm", "images", "prune"]).code, Some(0));
    assert_eq!(templates(&servin), 0);
    assert!(!is_warm(&servin.go(&["run", "--rm", "--timing", BASE, "true"]).stderr));
}

#[test]
fn a_damaged_template_is_a_cold_start_and_nothing_else() {
    let Some(servin) = Servin::new() else { return };
    servin.go(&["run", "--rm", BASE, "true"]).expect(0, "");
    let key = servin.go(&["vm", "images", "-q", "--no-trunc"]).text().trim().to_owned();
    let state = servin.data_root().join("templates").join(key).join("state");
    let mut bytes = std::fs::read(&state).expect("the state of the template");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&state, bytes).expect("a damaged state");
    let args = ["run", "--rm", "--timing", BASE, "echo", "hi"];
    for warm in [false, true] {
        let outcome = servin.go(&args);
        outcome.expect(0, "hi\n");
        assert_eq!(is_warm(&outcome.stderr), warm, "{outcome:?}");
        assert!(outcome.stderr.lines().all(|line| line.starts_with("timing: ")), "{outcome:?}");
    }
}

/// Everything that a program could take for unique or true, from as many clones as there is time for.
#[test]
fn clones_share_no_random_number_no_name_and_no_clock() {
    let Some(servin) = Servin::new() else { return };
    let words = "cat /proc/sys/kernel/random/uuid /proc/sys/kernel/random/boot_id; hostname; date +%s; \
                 head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n'";
    servin.go(&["run", "--rm", BASE, "sh", "-c", words]);
    let mut seen = HashSet::new();
    for index in 0..clones() {
        let before = now();
        let outcome = servin.go(&["run", "--rm", "--timing", BASE, "sh", "-c", words]);
        let after = now();
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert!(is_warm(&outcome.stderr), "run {index} is no clone: {outcome:?}");
        let text = outcome.text();
        let lines: Vec<&str> = text.lines().collect();
        let [uuid, boot, host, date, random] = lines[..] else { panic!("{outcome:?}") };
        assert_eq!((uuid.len(), boot.len(), random.len()), (36, 36, 32), "{outcome:?}");
        for unique in [uuid, boot, host, random] {
            assert!(seen.insert(unique.to_owned()), "run {index} repeats {unique}");
        }
        let date: u64 = date.parse().expect("seconds since 1970");
        // The guest shows whole seconds of a clock that was set a moment before.
        assert!((before.saturating_sub(1)..=after + 1).contains(&date), "{before} {date} {after}");
    }
    println!("{} clones", clones());
}
