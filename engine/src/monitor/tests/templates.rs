//! Templates and clones of them, against the guest of threads.

use super::*;

#[test]
fn the_template_is_made_before_anything_of_the_container_is_in_the_machine() {
    let run = run(&["echo", "hi"], How { template: true, ..How::default() });
    let guest = run.guest.clone();
    let (out, _, _, code, _) = run.end();
    assert_eq!((out.as_str(), code), ("hi\n", 0));
    assert_eq!(guest.log()[..3], ["prepare echo", "template", "configure box"]);
}

#[test]
fn of_a_machine_that_is_only_for_a_template_nothing_runs() {
    let run_one = |how: How| {
        let run = run(&["echo", "hi"], How { template_only: true, ..how });
        let guest = run.guest.clone();
        let (out, _, last, code, record) = run.end();
        assert_eq!((out.as_str(), last, code), ("", exited(0), 0));
        assert_eq!(record, ["ended 0 oom=false"]);
        guest.log()
    };
    assert_eq!(run_one(How { template: true, ..How::default() })[..2], ["prepare echo", "template"]);
    // There is one: the clone of it shows that it can be used.
    let log = run_one(How { warm: true, generation: 1, ..How::default() });
    assert!(!log.iter().any(|word| word.starts_with("configure")), "{log:?}");
}

#[test]
fn a_machine_that_can_have_no_template_is_told_so() {
    let run = run(&["echo", "hi"], How { template_only: true, ..How::default() });
    let (_, _, last, code, _) = run.end();
    assert_eq!(code, 125);
    assert!(format!("{last:?}").contains("cannot be a template"), "{last:?}");
}

#[test]
fn a_clone_that_noticed_runs_the_container() {
    let run = run(&["echo", "hi"], How { warm: true, generation: 1, ..How::default() });
    let guest = run.guest.clone();
    let (out, _, _, code, _) = run.end();
    assert_eq!((out.as_str(), code), ("hi\n", 0));
    assert_eq!(guest.log()[0], "configure box");
}

#[test]
fn a_clone_that_did_not_notice_is_replaced_before_anything_runs_in_it() {
    let run = run(&["echo", "hi"], How { warm: true, generation: 0, ..How::default() });
    let guest = run.guest.clone();
    let (out, _, last, code, record) = run.end();
    assert_eq!((out.as_str(), last, code), ("hi\n", exited(0), 0));
    assert_eq!(guest.log()[..2], ["cold", "configure box"]);
    assert_eq!(record, ["started", "ended 0 oom=false"]);
}

#[test]
fn a_clone_that_fails_before_its_hello_is_replaced() {
    let run = run(&["echo", "hi"], How { warm: true, silent: true, ..How::default() });
    run.guest.end(Ended::Failed("its state does not fit".into()));
    let guest = run.guest.clone();
    let (out, _, last, ..) = run.end();
    assert_eq!((out.as_str(), last), ("hi\n", exited(0)));
    assert_eq!(guest.log()[0], "cold");
}
