//! A Dockerfile's stages: which there are, which one needs another, and where each instruction stands.

use std::collections::BTreeSet;

use parse_dockerfile::Instruction;

use crate::output;

/// A stage's place in the Dockerfile.
pub(super) struct Place<'b, 'f> {
    pub(super) from: String,
    pub(super) name: Option<String>,
    pub(super) stage: parse_dockerfile::Stage<'f, 'b>,
}

/// Says what is being done.
pub(super) struct Progress {
    pub(super) done: usize,
    pub(super) steps: usize,
    pub(super) quiet: bool,
}

impl Progress {
    pub(super) fn step(&mut self, what: &str) {
        self.done += 1;
        if !self.quiet {
            output::note(&format!("[{}/{}] {what}\n", self.done, self.steps));
        }
    }

    pub(super) fn cached(&self) {
        if !self.quiet {
            output::note("    done before\n");
        }
    }
}

pub(super) fn find(list: &[(String, String)], name: &str) -> Option<String> {
    list.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.clone())
}

/// The stage that a name or a number means, among those before `end`.
pub(super) fn index(places: &[Place<'_, '_>], end: usize, name: &str) -> Option<usize> {
    let earlier = places.get(..end)?;
    let named = earlier.iter().rposition(|place| place.name.as_deref() == Some(&name.to_lowercase()));
    named.or_else(|| name.parse().ok().filter(|at| *at < end))
}

/// The stages that one needs, itself included.
pub(super) fn needed(places: &[Place<'_, '_>], target: usize) -> BTreeSet<usize> {
    let mut all = BTreeSet::new();
    let mut waiting = vec![target];
    while let Some(at) = waiting.pop() {
        let Some(place) = places.get(at).filter(|_| all.insert(at)) else { continue };
        waiting.extend(index(places, at, &place.from));
        for instruction in place.stage.instructions {
            let Instruction::Copy(copy) = instruction else { continue };
            let from = copy
                .options
                .iter()
                .find(|option| option.name.value == "from")
                .and_then(|option| option.value.as_ref());
            waiting.extend(from.and_then(|from| index(places, at, &from.value)));
        }
    }
    all
}

/// Where an instruction begins.
pub(super) fn start(instruction: &Instruction<'_>) -> usize {
    let keyword = match instruction {
        Instruction::Add(one) => &one.add,
        Instruction::Arg(one) => &one.arg,
        Instruction::Cmd(one) => &one.cmd,
        Instruction::Copy(one) => &one.copy,
        Instruction::Entrypoint(one) => &one.entrypoint,
        Instruction::Env(one) => &one.env,
        Instruction::Expose(one) => &one.expose,
        Instruction::From(one) => &one.from,
        Instruction::Healthcheck(one) => &one.healthcheck,
        Instruction::Label(one) => &one.label,
        Instruction::Maintainer(one) => &one.maintainer,
        Instruction::Onbuild(one) => &one.onbuild,
        Instruction::Run(one) => &one.run,
        Instruction::Shell(one) => &one.shell,
        Instruction::Stopsignal(one) => &one.stopsignal,
        Instruction::User(one) => &one.user,
        Instruction::Volume(one) => &one.volume,
        Instruction::Workdir(one) => &one.workdir,
        _ => return 0,
    };
    keyword.span.start
}
