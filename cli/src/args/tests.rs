use super::*;

fn typed(words: &[&str]) -> Result<Typed> {
    parse(std::iter::once("servin").chain(words.iter().copied()).map(OsString::from))
}

fn run(words: &[&str]) -> Run {
    match typed(&[&["run"], words].concat()) {
        Ok(Typed::Verb(_, verb)) => match verb {
            Verb::Run(run) => *run,
            other => panic!("{words:?} is {other:?}"),
        },
        other => panic!("{words:?} gave {other:?}"),
    }
}

/// What is printed and the exit code.
fn refused(words: &[&str]) -> (String, u8) {
    match typed(words) {
        Err(error) => (error.to_string(), error.code()),
        Ok(typed) => panic!("{words:?} was taken: {typed:?}"),
    }
}

fn printed(words: &[&str]) -> String {
    match typed(words) {
        Ok(Typed::Text(text)) => text,
        other => panic!("{words:?} gave {other:?}"),
    }
}

fn words(run: &Run) -> Vec<&str> {
    run.words.iter().map(|word| word.to_str().unwrap()).collect()
}

#[test]
fn run_alone_reads_what_the_whole_command_reads() {
    let lines: [&[&str]; 8] = [
        &["run", "-it", "--rm", "-m", "64", "--data-root", "/d", "box", "ps", "-a"],
        &["--data-root", "/d", "run", "-e", "A=1", "-e", "B", "box"],
        &["-D", "--log-level", "info", "run", "--rm=false", "box", "--", "run"],
        &["--data-root", "run", "run", "box"],
        &["run", "box"],
        &["run", "--net=none", "--net-alias", "a", "--sig-proxy=false", "--detach-keys", "-x", "-qP", "box"],
        &["run", "--env", "--rm", "-vh:/c", "--cap-add=ALL", "--pids-limit", "-1", "--init", "-dc5", "box"],
        &["run", "--trace=t", "--no-warm", "--timing", "-h", "-p", "-u0", "--ulimit", "--x", "box", "--gpus"],
    ];
    for line in lines {
        let argv: Vec<OsString> = ["servin"].iter().chain(line).map(OsString::from).collect();
        assert_eq!(typed_first(&argv), Some("run"), "{line:?}");
        let read = |command: Command| {
            let matches = command.try_get_matches_from(&argv).unwrap();
            let (name, of_verb) = matches.subcommand().unwrap();
            let verb = verb::read(name, of_verb).unwrap();
            format!("{:?} {:?} {verb:?}", matches.get_one::<PathBuf>("data-root"), matches.get_flag("debug"))
        };
        assert_eq!(read(frame().subcommand(run::typed(&argv))), read(command()), "{line:?}");
    }
    assert_eq!(typed_first(&["servin", "--data-root", "run", "ps"].map(OsString::from)), Some("ps"));
}

#[test]
fn version_is_one_line() {
    let expected = format!("Servin {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(printed(&["--version"]), expected);
    assert_eq!(printed(&["-v"]), expected);
    assert_eq!(printed(&["-V"]), expected);
}

#[test]
fn help_is_given_for_all_and_for_each_verb() {
    assert!(printed(&[]).contains("run"));
    assert!(printed(&["--help"]).contains("Usage: servin"));
    let help = printed(&["run", "--help"]);
    assert!(help.contains("--entrypoint"), "{help}");
    assert!(!help.contains("--gpus"), "what is not built is not offered");
    assert!(printed(&["doctor", "--help"]).contains("host"));
    assert!(printed(&["help", "run"]).contains("--entrypoint"));
}

#[test]
fn arguments_stop_at_the_image() {
    let run = run(&["-i", "img", "ls", "-la", "--rm", "--", "-t", "--help", "--version", "-h"]);
    assert!(run.interactive && !run.tty && !run.rm);
    assert_eq!(words(&run), ["img", "ls", "-la", "--rm", "--", "-t", "--help", "--version", "-h"]);
}

#[test]
fn words_of_the_program_arrive_byte_for_byte() {
    use std::os::unix::ffi::OsStringExt;
    let odd = OsString::from_vec(vec![b'-', 0xff, b' ', b'\n']);
    let argv = ["servin", "run", "img", "sh", "-c", "ls -la \"$0\"", "a b", "", "*"].map(OsString::from);
    let argv = argv.into_iter().chain([odd.clone()]);
    let Ok(Typed::Verb(_, verb)) = parse(argv) else { panic!("not a verb") };
    let Verb::Run(run) = verb else { panic!("not run") };
    let mut expected = ["img", "sh", "-c", "ls -la \"$0\"", "a b", "", "*"].map(OsString::from).to_vec();
    expected.push(odd);
    assert_eq!(run.words, expected);
}

#[test]
fn two_dashes_end_the_flags() {
    let run = run(&["-t", "--", "img", "-x"]);
    assert!(run.tty);
    assert_eq!(words(&run), ["img", "-x"]);
}

#[test]
fn switches_bundle_and_can_be_switched_off() {
    let both = run(&["-it", "img"]);
    assert!(both.interactive && both.tty);
    let three = run(&["-dit", "img"]);
    assert!(three.detach && three.interactive && three.tty);
    let off = run(&["--rm=false", "--tty=true", "-i=false", "img"]);
    assert!(!off.rm && off.tty && !off.interactive);
    assert!(run(&["img"]).sig_proxy);
    assert!(!run(&["--sig-proxy=false", "img"]).sig_proxy);
    let with_value = run(&["-itw", "/dir", "img"]);
    assert_eq!(with_value.workdir.unwrap(), "/dir");
    assert!(with_value.tty);
}

#[test]
fn a_switch_does_not_take_the_next_word() {
    let run = run(&["--rm", "true", "false"]);
    assert!(run.rm);
    assert_eq!(words(&run), ["true", "false"]);
}

#[test]
fn values_come_in_every_form() {
    for words in
        [&["-e", "K=V", "img"][..], &["-eK=V", "img"], &["--env", "K=V", "img"], &["--env=K=V", "img"]]
    {
        assert_eq!(run(words).env, ["K=V"], "{words:?}");
    }
    assert_eq!(run(&["-e", "-x=1", "-e", "B", "img"]).env, ["-x=1", "B"]);
    assert_eq!(run(&["--entrypoint", "", "img"]).entrypoint.unwrap(), "");
    assert_eq!(run(&["--entrypoint=", "img"]).entrypoint.unwrap(), "");
    assert_eq!(run(&["-h", "box", "img"]).hostname.unwrap(), "box");
    assert_eq!(run(&["-m", "64m", "--cpus", "1.5", "-u", "1:2", "img"]).memory.unwrap(), "64m");
}

#[test]
fn the_last_of_a_repeated_flag_counts() {
    assert_eq!(run(&["-m", "1g", "-m", "2g", "img"]).memory.unwrap(), "2g");
    assert!(!run(&["--rm", "--rm=false", "img"]).rm);
}

#[test]
fn verbs_of_the_container_group_are_the_verbs_themselves() {
    let debug = |words: &[&str]| format!("{:?}", typed(words).unwrap());
    for (group, alone) in [
        (&["container", "ls", "-a"][..], &["ps", "-a"][..]),
        (
            &["--data-root", "/d", "container", "run", "-it", "img"],
            &["--data-root", "/d", "run", "-it", "img"],
        ),
        (&["container", "inspect", "x"], &["inspect", "--type", "container", "x"]),
        (&["container", "pause", "x"], &["pause", "x"]),
    ] {
        assert_eq!(debug(group), debug(alone));
    }
    assert_eq!(words(&run(&["img", "container", "ls"])), ["img", "container", "ls"]);
    assert!(typed(&["container", "nonsense"]).is_err());
    assert_eq!(
        refused(&["update", "--cpuset-cpus", "1", "x"]).0,
        "update --cpuset-cpus is not built yet in this version of servin"
    );
    assert!(debug(&["update", "--cpu-quota", "-1", "x"]).contains("(\"--cpu-quota\", \"-1\")"));
}

#[test]
fn flags_that_are_not_built_are_refused_by_name() {
    for (words, flag) in [
        (&["run", "--gpus", "all", "img"][..], "--gpus"),
        (&["run", "--ip6", "fd00::7", "img"], "--ip6"),
        (&["run", "--rm", "--device", "/dev/x", "img", "sh"], "--device"),
        (&["run", "--oom-kill-disable", "img"], "--oom-kill-disable"),
    ] {
        let (text, code) = refused(words);
        assert_eq!(text, format!("run {flag} is not built yet in this version of servin"));
        assert_eq!(code, 125);
    }
}

#[test]
fn verbs_that_are_not_built_are_refused_by_name() {
    for (words, what) in
        [(&["search", "--x"][..], "search"), (&["build", "--secret", "id=x", "."], "build --secret")]
    {
        let (text, code) = refused(words);
        assert_eq!(text, format!("{what} is not built yet in this version of servin"));
        assert_eq!(code, 1);
    }
}

#[test]
fn start_takes_names_or_conditions() {
    let start = |words: &[&str]| match typed(words) {
        Ok(Typed::Verb(_, Verb::Starting(Starting::Start(start)))) => (start.names, start.filter),
        other => panic!("{words:?} gave {other:?}"),
    };
    assert_eq!(start(&["start", "a", "b"]), (vec!["a".into(), "b".into()], vec![]));
    let filter = vec!["restart-policy=always".to_owned(), "label=x".to_owned()];
    assert_eq!(start(&["start", "-f", &filter[0], "--filter", &filter[1]]), (vec![], filter));
    assert_eq!(refused(&["start"]).0, "<CONTAINER>... is missing");
}

#[test]
fn a_completion_knows_what_is_built_and_nothing_else() {
    for shell in ["bash", "zsh", "fish"] {
        let script = printed(&["completion", shell]);
        for known in ["network", "exec", "detach-keys", "health-cmd"] {
            assert!(script.contains(known), "{shell}: no {known}");
        }
        for refused in ["oom-kill-disable", "volume-driver"] {
            assert!(!script.contains(refused), "{shell}: {refused}");
        }
    }
    let (text, code) = refused(&["completion", "cmd.exe"]);
    assert_eq!(
        (text.as_str(), code),
        ("invalid value \"cmd.exe\" for <SHELL>: it is one of bash, elvish, fish, powershell, zsh", 1)
    );
}

#[test]
fn what_is_unknown_is_refused_in_one_line() {
    for (words, expected, code) in [
        (&["run", "--no-such", "img"][..], "unknown flag --no-such", 125),
        (&["run", "-Z", "img"], "unknown flag -Z", 125),
        (&["run", "--rmm", "img"], "unknown flag --rmm (did you mean --rm?)", 125),
        (&["--no-such"], "unknown flag --no-such", 1),
        (&["frobnicate"], "unknown command \"frobnicate\"", 1),
        (&["doctor", "x"], "unexpected argument \"x\"", 1),
        (&["run"], "<IMAGE>... is missing", 125),
        (&["run", "-m"], "--memory <SIZE> needs a value", 125),
        (
            &["run", "--rm=maybe", "img"],
            "invalid value \"maybe\" for --rm[=<BOOL>]: it is true or false",
            125,
        ),
        (
            &["--log-level", "loud", "doctor"],
            "invalid value \"loud\" for --log-level <LEVEL>: it is off, error, warn, info, debug or trace",
            1,
        ),
        (&["rnu", "img"], "unknown command \"rnu\" (did you mean run?)", 1),
        (&["exec", "x"], "\"servin exec\" needs <CONTAINER> <COMMAND>...", 125),
        (&["tag", "a"], "\"servin tag\" needs <IMAGE> <NAME[:TAG]>", 1),
    ] {
        let (text, found) = refused(words);
        assert_eq!(text, expected, "{words:?}");
        assert_eq!(found, code, "{words:?}");
    }
}

#[test]
fn global_flags_stand_before_or_after_the_verb() {
    for words in
        [&["--data-root", "/d", "-D", "doctor"][..], &["doctor", "--data-root=/d", "--log-level", "debug"]]
    {
        let Ok(Typed::Verb(global, _)) = typed(words) else { panic!("{words:?}") };
        assert_eq!(global.data_root.as_deref(), Some(std::path::Path::new("/d")));
        assert_eq!(global.log_level, log::LevelFilter::Debug);
    }
}

#[test]
fn groups_have_dockers_verbs_and_show_them() {
    let debug = |words: &[&str]| format!("{:?}", typed(words).unwrap());
    assert_eq!(debug(&["system", "events", "--since", "1h"]), debug(&["events", "--since", "1h"]));
    assert!(matches!(typed(&["version", "-f", "x"]), Ok(Typed::Verb(_, Verb::Version { format: Some(_) }))));
    let help = printed(&["container", "--help"]);
    for verb in ["ls", "inspect", "run", "exec", "prune", "stop"] {
        assert!(help.contains(&format!("  {verb} ")), "{verb}: {help}");
    }
    assert!(printed(&["system", "prune", "--help"]).contains("networks"));
}

#[test]
fn a_group_without_a_verb_says_which_it_has_and_hints_name_the_verb() {
    let hint = |words: &[&str]| match typed(words) {
        Err(error) => (error.to_string(), error.hint().unwrap_or_default()),
        Ok(typed) => panic!("{words:?} was taken: {typed:?}"),
    };
    let (what, to) = hint(&["image"]);
    assert!(what.starts_with("\"servin image\" needs a command: ls, ") || what.contains(", ls, "), "{what}");
    assert!(what.contains("prune") && to == "see \"servin image --help\"", "{what} {to}");
    for (words, verb) in [
        (&["image", "prune", "--x"][..], "image prune"),
        (&["--data-root", "/d", "system", "df", "--x"], "system df"),
        (&["container", "foo"], "container"),
        (&["vm", "foo"], "vm"),
        (&["vm", "images", "pull"], "vm images pull"),
        (&["volume", "create", "-d", "nfs", "x"], "volume create"),
        (&["network", "create", "-d", "x", "n"], "network create"),
        (&["ps", "-Z"], "ps"),
    ] {
        assert_eq!(hint(words).1, format!("see \"servin {verb} --help\""), "{words:?}");
    }
    assert_eq!(hint(&["container", "foo"]).0, "unknown command \"container foo\"");
    assert_eq!(hint(&["nonsense"]).1, "see \"servin --help\"");
}
