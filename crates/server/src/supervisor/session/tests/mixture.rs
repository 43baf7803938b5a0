//! A thousand commands of all sorts in one session, each held against what it must have done.
//!
//! A model of the session draws the commands, in an order that a seed decides, and says what each
//! comes to: its output to the byte, its status, and whether it ends the shell.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Stdio;

use afar_core::job::Told;
use afar_proto::connection::Stream;
use afar_proto::message::{Command, OpenSpec};
use afar_proto::outcome::{End, Seal};
use bytes::Bytes;

use super::rig::{Rig, SHELLS, in_local_set};
use crate::supervisor::job::{FromJob, Said};

const COMMANDS: usize = 1000;

/// In the middle of them, for each shell.
const LARGE_OUTPUT_BYTES: usize = 100_000_000;

/// A command, and what it must come to.
struct Step {
    command: Command,
    stdin: String,
    merge: bool,
    out: Vec<u8>,
    err: Expected,
    end: End,
    restarted: bool,
}

/// What a command says on stderr.
enum Expected {
    Exactly(String),
    /// What the shell has to say about this. It says the same each time, but for numbers of lines, and
    /// in bash there is more of it when the shell goes on.
    Complaint(About),
}

/// A script, and whether the shell that complains about it is a strict one.
type About = (&'static str, bool);

/// What the commands have made of the session.
struct Model {
    shell: &'static str,
    scratch: PathBuf,
    dice: u64,
    state: State,
}

#[derive(Default)]
struct State {
    cwd: Option<&'static str>,
    variable: Option<u64>,
    exported: Option<u64>,
    has_function: bool,
    /// `command` is a function, and in bash and zsh `eval` too.
    is_redefined: bool,
    /// `set -eu`.
    is_strict: bool,
    /// `$?`
    status: u8,
}

impl Model {
    /// xorshift64: all that is asked of it is an order that comes again.
    fn draw(&mut self, below: u64) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice % below
    }

    /// One that exits with this status as the last thing it does.
    fn step(&mut self, script: &str, out: &str, err: &str, status: u8) -> Step {
        let restarted = self.state.is_strict && status != 0;
        if restarted {
            self.state = State::default();
        } else {
            self.state.status = status;
        }
        Step {
            command: Command::Script(script.into()),
            stdin: String::new(),
            merge: false,
            out: out.into(),
            err: Expected::Exactly(err.to_owned()),
            end: End::Exited { code: status },
            restarted,
        }
    }

    /// One that ends the shell.
    fn last_step(&mut self, script: &str, end: End) -> Step {
        self.state = State::default();
        Step { end, restarted: true, ..self.step(script, "", "", 0) }
    }

    /// One that the shell complains about, with the status that it has for that by itself.
    fn complaint(&mut self, script: &'static str) -> Step {
        let mut alone = std::process::Command::new(self.shell)
            .args(["-us"])
            .env("TEXT", script)
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        alone.stdin.take().unwrap().write_all(b"eval \"$TEXT\"\n").unwrap();
        let status = u8::try_from(alone.wait().unwrap().code().unwrap()).unwrap();
        assert_ne!(status, 0);
        let err = Expected::Complaint((script, self.state.is_strict));
        Step { err, ..self.step(script, "", "", status) }
    }

    fn next(&mut self) -> Vec<Step> {
        let n = self.draw(1000);
        let status = u8::try_from(n % 4 * 85).unwrap();
        match self.draw(22) {
            0 => vec![self.change_directory()],
            1 => {
                let (cwd, before) = (self.state.cwd.unwrap_or("/tmp"), self.state.status);
                vec![self.step("echo $?; pwd", &format!("{before}\n{cwd}\n"), "", 0)]
            }
            2 => {
                self.state.exported = Some(n);
                self.state.variable = Some(n + 1);
                vec![self.step(&format!("export E={n}; v={}", n + 1), "", "", 0)]
            }
            3 => {
                let shown = |value: Option<u64>| value.map_or("none".to_owned(), |v| v.to_string());
                let out =
                    format!("{} {}\n", shown(self.state.exported), shown(self.state.variable));
                let script = "sh -c 'printf %s \"${E-none}\"'; echo \" ${v-none}\"";
                vec![self.step(script, &out, "", 0)]
            }
            4 => {
                self.state.has_function = true;
                let define = "f() { echo \"f $1\"; echo \"e $1\" >&2; return $2; }";
                vec![self.step(define, "", "", 0)]
            }
            5 if self.state.has_function => {
                let (out, err) = (format!("f {n}\n"), format!("e {n}\n"));
                vec![self.step(&format!("f {n} {status}"), &out, &err, status)]
            }
            6 => {
                self.state.is_strict = !self.state.is_strict;
                let sign = if self.state.is_strict { '-' } else { '+' };
                vec![self.step(&format!("set {sign}eu"), "", "", 0)]
            }
            7 => self.trace(n),
            8 => {
                let out = format!("out {n}\n");
                vec![self.step(&format!("echo out {n}; (exit {status})"), &out, "", status)]
            }
            9 if n.is_multiple_of(3) => {
                vec![self.last_step(&format!("exit {status}"), End::Exited { code: status })]
            }
            10 if n.is_multiple_of(3) => {
                let (signal, name) = if n.is_multiple_of(2) { (15, "TERM") } else { (9, "KILL") };
                let end = End::Signaled { signal, name: format!("SIG{name}"), core: false };
                vec![self.last_step(&format!("kill -{name} $$; echo not reached"), end)]
            }
            11 => vec![self.complaint_about_syntax(n)],
            12 => {
                let script = format!("cat <<EOF\na 'b\n$((1+{n}))\nEOF\necho after >&2");
                vec![self.step(&script, &format!("a 'b\n{}\n", n + 1), "after\n", 0)]
            }
            13 => self.background_job(n, status),
            14 => self.lasting_redirection(n),
            15 => vec![self.step(
                &format!("printf 'no newline {n}'"),
                &format!("no newline {n}"),
                "",
                0,
            )],
            16 => {
                let out = format!("[first {n}]\nrest of {n}");
                let step = self.step("read x; echo \"[$x]\"; cat", &out, "", 0);
                vec![Step { stdin: format!("first {n}\nrest of {n}"), ..step }]
            }
            17 => vec![self.redefinition(n)],
            18 => {
                let words = ["printf", "%s\n", "$HOME *", "it's", &n.to_string()].map(Into::into);
                let step = self.step("", &format!("$HOME *\nit's\n{n}\n"), "", 0);
                vec![Step { command: Command::Argv(words.into()), ..step }]
            }
            19 => {
                let script = format!("echo a; echo b{n} >&2; echo c");
                let step = self.step(&script, &format!("a\nb{n}\nc\n"), "", 0);
                vec![Step { merge: true, ..step }]
            }
            20 => vec![self.unset_variable()],
            _ => vec![self.step("", "", "", 0)],
        }
    }

    fn change_directory(&mut self) -> Step {
        let to = ["/usr", "/", "/tmp"][usize::try_from(self.draw(3)).unwrap()];
        self.state.cwd = Some(to);
        self.step(&format!("cd {to}"), "", "", 0)
    }

    /// A trace that goes on from one command to the next.
    fn trace(&mut self, n: u64) -> Vec<Step> {
        // bash counts the evaluation as a level.
        let plus = if self.shell == "/bin/bash" { "++" } else { "+" };
        vec![
            self.step("PS4='+ '; set -x", "", "", 0),
            self.step(&format!("echo {n}"), &format!("{n}\n"), &format!("{plus} echo {n}\n"), 0),
            self.step("set +x", "", &format!("{plus} set +x\n"), 0),
        ]
    }

    fn complaint_about_syntax(&mut self, n: u64) -> Step {
        let texts =
            ["echo \"unfinished", "echo 'unfinished", "echo $((1+", "if true; then", "echo a; )"];
        let text = texts[usize::try_from(n).unwrap() % texts.len()];
        self.complaint(text)
    }

    fn background_job(&mut self, n: u64, status: u8) -> Vec<Step> {
        let start = format!("sh -c 'echo bg {n}; exit {status}' & p=$!; wait $p && s=0 || s=$?");
        let start = self.step(&format!("{start}; echo fg"), &format!("bg {n}\nfg\n"), "", 0);
        // One that the next command waits for.
        let leave = self.step(&format!("sh -c 'exit {status}' & p=$!"), "", "", 0);
        let wait = "wait $p && s=0 || s=$?; echo $s";
        vec![start, leave, self.step(wait, &format!("{status}\n"), "", 0)]
    }

    fn lasting_redirection(&mut self, n: u64) -> Vec<Step> {
        let file = self.scratch.display().to_string();
        vec![
            self.step(&format!("rm -f {file}; exec >{file}; echo within {n}"), "", "", 0),
            self.step(&format!("cat {file}; echo out"), &format!("within {n}\nout\n"), "", 0),
        ]
    }

    fn redefinition(&mut self, n: u64) -> Step {
        let both = self.shell != "/bin/dash";
        if !self.state.is_redefined {
            self.state.is_redefined = true;
            let eval = if both { "; eval() { echo my eval; }" } else { "" };
            return self.step(&format!("command() {{ echo \"my $1\"; }}{eval}"), "", "", 0);
        }
        if n.is_multiple_of(4) {
            self.state.is_redefined = false;
            let eval = if both { " eval" } else { "" };
            return self.step(&format!("unset -f command{eval}"), "", "", 0);
        }
        let (script, out) = if both { ("; eval x", "my eval\n") } else { ("", "") };
        self.step(&format!("command {n}{script}"), &format!("my {n}\n{out}"), "", 0)
    }

    /// An error where `set -u` is on.
    fn unset_variable(&mut self) -> Step {
        if !self.state.is_strict {
            return self.step("echo \"[$nope]\"", "[]\n", "", 0);
        }
        self.complaint("echo \"[$nope]\"")
    }
}

/// What came of a command; of a large output its hash is kept.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    out: blake3::Hash,
    shown: Vec<u8>,
    err: String,
    end: End,
    restarted: bool,
}

async fn run(rig: &Rig, spec: &OpenSpec, stdin: String) -> Seen {
    let mut running = rig.start(spec).unwrap();
    running.say(Said::Input(Bytes::from(stdin)));
    running.say(Said::InputEnd);
    let (mut hash, mut shown, mut err) = (blake3::Hasher::new(), Vec::new(), Vec::new());
    let mut sealed: Option<Box<Seal>> = None;
    while let Some(event) = running.next().await {
        match event {
            FromJob::Told(Told::Data { stream: Stream::Stdout, bytes, .. }) => {
                hash.update(&bytes);
                let room = 4096_usize.saturating_sub(shown.len()).min(bytes.len());
                shown.extend_from_slice(&bytes[..room]);
            }
            FromJob::Told(Told::Data { bytes, .. }) => err.extend(bytes),
            FromJob::Told(Told::Seal(seal)) => sealed = Some(seal),
            _ => {}
        }
    }
    let Seal { end, session_restarted: restarted, .. } = *sealed.unwrap();
    Seen { out: hash.finalize(), shown, err: String::from_utf8(err).unwrap(), end, restarted }
}

/// What a shell says, without the numbers in it.
fn without_numbers(text: &str) -> String {
    text.chars().filter(|character| !character.is_ascii_digit()).collect()
}

async fn check(rig: &Rig, step: Step, said: &mut BTreeMap<About, String>, what: &str) {
    let Step { command, stdin, merge, out, err, end, restarted } = step;
    let mut spec = rig.spec("");
    (spec.command, spec.merge, spec.stdin) = (command, merge, !stdin.is_empty());
    let seen = run(rig, &spec, stdin).await;
    let err = match err {
        Expected::Exactly(err) => err,
        Expected::Complaint(about) => {
            let now = without_numbers(&seen.err);
            assert!(!now.is_empty(), "{what}: nothing is said about {about:?}");
            assert_eq!(said.entry(about).or_insert_with(|| now.clone()), &now, "{what}");
            seen.err.clone()
        }
    };
    let shown = out[..out.len().min(4096)].to_vec();
    let expected = Seen { out: blake3::hash(&out), shown, err, end, restarted };
    assert_eq!(seen, expected, "{what}: {:?}", spec.command);
}

#[test]
fn fault_43_a_thousand_mixed_commands_keep_their_streams_and_statuses() {
    let large: Vec<u8> =
        b"0123456789abcde\n".iter().copied().cycle().take(LARGE_OUTPUT_BYTES).collect();
    for shell in SHELLS {
        in_local_set(async {
            let rig = Rig::new(shell);
            let scratch = tempfile::tempdir().unwrap();
            let mut model = Model {
                shell,
                scratch: scratch.path().join("file"),
                dice: 0x5eed_0123_4567_89ab,
                state: State::default(),
            };
            let mut said = BTreeMap::new();
            let (mut done, mut restarts, mut is_large_due) = (0, 0, true);
            while done < COMMANDS {
                let mut steps = model.next();
                if is_large_due && done >= COMMANDS / 2 {
                    is_large_due = false;
                    let script = format!("yes 0123456789abcde | head -c {LARGE_OUTPUT_BYTES}");
                    steps.push(Step { out: large.clone(), ..model.step(&script, "", "", 0) });
                }
                for step in steps {
                    done += 1;
                    restarts += usize::from(step.restarted);
                    check(&rig, step, &mut said, &format!("{shell}, command {done}")).await;
                }
            }
            assert!(restarts > 20 && said.len() >= 5, "{shell}: {restarts} {said:?}");
        });
    }
}
