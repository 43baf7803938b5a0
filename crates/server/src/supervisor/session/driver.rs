//! What a session's shell is told for one command, and how its answer is read.
//!
//! The shell reads its own script from stdin, a pipe of ours: a few lines for each command. They
//! evaluate the command's text, which is quoted, so that nothing in it can be taken for a line of
//! ours: a quote or a bracket that is left open is an error of the evaluation and ends with it.
//! Streams are opened for the evaluation alone, by their paths in our own `/proc/PID/fd`, and so
//! is the pipe of the answer, behind it: the command inherits no descriptor but 0, 1 and 2.
//!
//! A command can redefine nearly everything. What cannot be redefined is used first:
//!
//! - keywords, assignments and redirections;
//! - in dash, the special built-ins (POSIX.1-2024, XCU 2.15), which are found before functions;
//! - in bash the same, but only in its POSIX mode, which an assignment to `POSIXLY_CORRECT` enters;
//!   there a function named `builtin` is removed, and then `builtin` can be relied on;
//! - in zsh a function named `builtin` is removed after a look at the array of functions.
//!
//! Every word that an alias could change is quoted, no expansion is left unquoted (IFS, `set -f`),
//! redirections override `set -C`, no line of ours fails (`set -e`) or uses an unset variable
//! (`set -u`), and the trace of `set -x` goes to the shell's own stderr, `/dev/null`.
//!
//! An export of a variable that is read-only is an error that no `||` catches: it ends dash, and
//! bash and zsh under `set -e`. So what the client wants exported is tried in a process of its own
//! first, and every export of the shell's own stands where its error is harmless: in dash behind
//! `command`, in bash and zsh while `set -e` is off, in zsh within an always-block besides.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::dialect::Dialect;
use super::limits::REPLY_BYTES_MAX;

/// One command for the shell.
#[derive(Clone, Copy, Debug)]
pub(super) struct Evaluation<'a> {
    /// The number of the command in this shell; the answer repeats it.
    pub(super) number: u64,
    /// The text to evaluate; holds no NUL.
    pub(super) text: &'a [u8],
    /// Variables to export before.
    pub(super) exports: &'a Exports,
    /// Paths to open, none of which needs quoting.
    pub(super) paths: Paths<'a>,
}

/// Variables for a command. The names are names, and the values hold no NUL.
#[derive(Clone, Debug, Default)]
pub(in crate::supervisor) struct Exports {
    /// What the client asked for. The command is not run unless each of them can be set.
    pub(super) asked: Vec<Variable>,
    /// What afar adds. If the user has made one of them read-only, that stays what it is.
    pub(super) own: Vec<Variable>,
}

/// A name and a value.
pub(super) type Variable = (Vec<u8>, Vec<u8>);

/// Where the streams of a command are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paths<'a> {
    pub(super) stdin: &'a str,
    pub(super) stdout: &'a str,
    /// `None`: where stdout is.
    pub(super) stderr: Option<&'a str>,
    pub(super) answer: &'a str,
}

/// What is known of the shell between its commands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Driver {
    dialect: Dialect,
    /// `$?`, which the next command finds.
    status: u8,
    /// dash: the user has a function named `command`.
    command_redefined: bool,
    /// zsh: `set -x` was on; it is off between commands.
    traced: bool,
    /// bash and zsh: `set -e` is on.
    errexit: bool,
    /// Processor time up to the last answer.
    cpu: CpuTime,
}

/// Processor time of the shell and the children that it has waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CpuTime {
    pub(super) user: Duration,
    pub(super) system: Duration,
}

/// Whether the variables that a client asks for can be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tried {
    Settable,
    /// Not this one.
    NotSettable(String),
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The command's exit status, and what it took.
    Status(u8, CpuTime),
    /// The status has to be asked for again, with this.
    AskAgain(Vec<u8>),
}

impl Driver {
    pub(super) fn new(dialect: Dialect) -> Self {
        let cpu = CpuTime::default();
        Self { dialect, status: 0, command_redefined: false, traced: false, errexit: false, cpu }
    }

    /// The lines that find out whether these variables can be set, and change nothing.
    pub(super) fn compose_trial(
        &self,
        number: u64,
        variables: &[Variable],
        answer: &str,
    ) -> Vec<u8> {
        let mut lines = Lines(Vec::new());
        // Only dash lacks `builtin`; there a process of its own can remove the function.
        let (prepare, builtin) = match self.dialect {
            Dialect::Posix => ("\\unset -f printf; ", "\\"),
            Dialect::Bash | Dialect::Zsh => ("", "\\builtin "),
        };
        lines.push(&format!("({prepare}"));
        for (name, value) in variables {
            let name = String::from_utf8_lossy(name);
            lines.push(&format!(
                "{builtin}printf '@{number} ?{name}\\n' && {builtin}export {name}="
            ));
            lines.quoted(value);
            lines.push(" && ");
        }
        lines.push(&format!("{builtin}printf '@{number} +\\n') >|{answer} || "));
        lines.push(&format!("({prepare}{builtin}printf '@{number} -\\n') >|{answer}\n"));
        lines.0
    }

    /// Reads the answer to [`Driver::compose_trial`], once it is whole.
    pub(super) fn read_trial(number: u64, received: &[u8]) -> Option<Tried> {
        let text = String::from_utf8_lossy(received);
        let start = format!("@{number} ");
        let mut last = "";
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            match line.strip_prefix(&start) {
                Some("+") => return Some(Tried::Settable),
                Some("-") => return Some(Tried::NotSettable(last.to_owned())),
                Some(tried) => last = tried.strip_prefix('?').unwrap_or(last),
                None => {}
            }
        }
        None
    }

    /// The lines for one command.
    pub(super) fn compose(&self, evaluation: &Evaluation<'_>) -> Vec<u8> {
        let mut lines = Lines(Vec::with_capacity(evaluation.text.len() + 1024));
        match self.dialect {
            Dialect::Posix => self.compose_posix(evaluation, &mut lines),
            Dialect::Bash => self.compose_bash(evaluation, &mut lines),
            Dialect::Zsh => self.compose_zsh(evaluation, &mut lines),
        }
        lines.0
    }

    /// The function that makes `$?` what it was, and the beginning of the line that uses it: on the
    /// left of `||` it can't trigger `set -e` or a trap of ERR, and the right side still does.
    fn restore_status(&self, lines: &mut Lines) -> &'static str {
        if self.status == 0 {
            return "";
        }
        lines.push(&format!("__afar_s() {{ return {}; }}\n", self.status));
        "__afar_s || "
    }

    fn compose_posix(&self, evaluation: &Evaluation<'_>, lines: &mut Lines) {
        let Evaluation { number, text, exports, paths } = evaluation;
        lines.push("\\unset __afar_s\n");
        for variable in exports.each() {
            if self.command_redefined {
                lines.push("if (");
                lines.assign("\\export ", variable);
                lines.push(")\nthen ");
                lines.assign("\\export ", variable);
                lines.push("\nfi\n");
            } else {
                lines.assign("\\command \\export ", variable);
                lines.push(" || \\:\n");
            }
        }
        let restore = self.restore_status(lines);
        if self.command_redefined {
            // The syntax is checked by reading without executing, in a process of its own, which
            // traces nothing (`set -x`) of that.
            lines.push("if (\\set +x; \\eval ");
            lines.quoted(&[b"\\set -n\n".as_slice(), text].concat());
            lines.streams(paths);
            lines.push(")\nthen\n");
            lines.push(restore);
            lines.push("\\eval ");
            lines.quoted(text);
            lines.streams(paths);
            // An error of syntax is one for `set -e`, too.
            lines.push("\n__afar_s=$?\nelse\n__afar_s=$?\n(\\exit \"$__afar_s\")\nfi\n");
        } else {
            // `command` takes from a special built-in that its error ends the shell, which an error
            // of syntax would otherwise do.
            lines.push(&format!("{restore}\\command \\eval "));
            lines.quoted(text);
            lines.streams(paths);
            lines.push("\n__afar_s=$?\n");
        }
        if self.status != 0 {
            lines.push("\\unset -f __afar_s\n");
        }
        if self.command_redefined {
            lines.push(&ask_again(*number, paths.answer));
        } else {
            // `times` is a special built-in, so it answers even where `command` is a function now.
            lines.push(&format!(
                "{{ \\command printf '@{number} %s\\n' \"$__afar_s\"; \\times; }} >|{}\n",
                paths.answer
            ));
        }
    }

    fn compose_bash(&self, evaluation: &Evaluation<'_>, lines: &mut Lines) {
        let Evaluation { number, text, exports, paths } = evaluation;
        self.without_errexit(lines, |lines| {
            for variable in exports.each() {
                lines.assign("\\builtin export ", variable);
                lines.push(" || \\builtin :\n");
            }
        });
        let restore = self.restore_status(lines);
        lines.push(&format!("{restore}\\builtin eval "));
        lines.quoted(text);
        lines.streams(paths);
        lines.push("\n__afar_s=$? __afar_p=${POSIXLY_CORRECT+y} POSIXLY_CORRECT=y\n");
        lines.push("\\unset -f builtin __afar_s\n[[ $__afar_p ]] || \\unset POSIXLY_CORRECT\n");
        lines.push(&format!(
            "{{ \\builtin printf '@{number} %s %s\\n' \"$__afar_s\" \"$-\"; \\builtin times; }} >|{}\n",
            paths.answer
        ));
        lines.push("\\builtin unset __afar_s __afar_p\n");
    }

    fn compose_zsh(&self, evaluation: &Evaluation<'_>, lines: &mut Lines) {
        let Evaluation { number, text, exports, paths } = evaluation;
        self.without_errexit(lines, |lines| {
            for variable in exports.each() {
                lines.assign("{ \\builtin export ", variable);
                lines.push(" || \\builtin : } always { TRY_BLOCK_ERROR=0 }\n");
            }
            lines.push("\\builtin :\n");
        });
        let mut restore = self.restore_status(lines);
        let mut traced = Vec::new();
        if self.traced {
            // A trace that is on before the evaluation goes on to where it went: it must be
            // switched on within, and leave `$?` alone there.
            if self.status == 0 {
                traced.extend(b"\\builtin set -x\n");
            } else {
                traced.extend(b"{ __afar_s } always { \\builtin set -x }\n");
            }
            restore = "";
        }
        traced.extend_from_slice(text);
        // An error of expansion (`set -u`, a pattern without a match) ends the evaluation, and
        // without the always-block it would end the shell.
        lines.push(&format!("{{ {restore}\\builtin eval "));
        lines.quoted(&traced);
        lines.streams(paths);
        lines.push("\n} always { __afar_s=$? TRY_BLOCK_ERROR=0 }\n");
        lines.push("(( ! ${+functions[builtin]} )) || \\unset -f builtin\n");
        lines.push(&format!(
            "{{ \\builtin printf '@{number} %s %s\\n' \"$__afar_s\" \"$-\"; \\builtin times; }} >|{}\n",
            paths.answer
        ));
        lines.push("\\builtin set +x\n\\builtin unset __afar_s\n");
        if self.status != 0 {
            lines.push("\\builtin unset -f __afar_s\n");
        }
    }

    /// Lines during which no failure ends the shell.
    fn without_errexit(&self, lines: &mut Lines, inner: impl FnOnce(&mut Lines)) {
        if self.errexit {
            lines.push("\\builtin set +e\n");
        }
        inner(lines);
        if self.errexit {
            lines.push("\\builtin set -e\n");
        }
    }

    /// Reads the answer to the command of this number, once it is whole. `received` may hold lines
    /// that others wrote; they are passed over.
    pub(super) fn read(&mut self, number: u64, answer: &str, received: &[u8]) -> Option<Answer> {
        let text = String::from_utf8_lossy(received);
        let mut status = None;
        let mut times = Vec::new();
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            if let Some(found) = status_line(number, line) {
                status = Some(found);
                times.clear();
            } else if let Some(time) = times_line(line) {
                times.push(time);
            }
        }
        let [own, children, ..] = times[..] else { return None };
        let Some((status, options)) = status else {
            self.command_redefined = true;
            return Some(Answer::AskAgain(ask_again(number, answer).into_bytes()));
        };
        let cpu = CpuTime { user: own.user + children.user, system: own.system + children.system };
        let spent = self.spent(cpu);
        self.status = status;
        self.traced = options.contains('x');
        self.errexit = options.contains('e');
        self.cpu = cpu;
        Some(Answer::Status(status, spent))
    }

    /// What was spent since the last answer, of a total.
    pub(super) fn spent(&self, total: CpuTime) -> CpuTime {
        CpuTime {
            user: total.user.saturating_sub(self.cpu.user),
            system: total.system.saturating_sub(self.cpu.system),
        }
    }
}

/// In a process of its own functions can be removed without a loss.
fn ask_again(number: u64, answer: &str) -> String {
    format!("(\\unset -f printf; \\printf '@{number} %s\\n' \"$__afar_s\"; \\times) >|{answer}\n")
}

/// The status and, from bash and zsh, the letters of the options that are on.
fn status_line(number: u64, line: &str) -> Option<(u8, String)> {
    let rest = line.strip_prefix(&format!("@{number} "))?;
    let (status, options) = rest.split_once(' ').unwrap_or((rest, ""));
    Some((status.parse().ok()?, options.to_owned()))
}

/// `0m0.01s 0m0.02s`, user time first, with the decimal sign of the locale.
fn times_line(line: &str) -> Option<CpuTime> {
    // ksh93 gives a line to each kind; it is not told apart here, and nothing is counted.
    if line.starts_with("user\t") || line.starts_with("sys\t") {
        return Some(CpuTime::default());
    }
    let (user, system) = line.split_once(' ')?;
    Some(CpuTime { user: duration(user)?, system: duration(system)? })
}

fn duration(text: &str) -> Option<Duration> {
    let (minutes, seconds) = text.strip_suffix('s')?.split_once('m')?;
    let minutes: u64 = minutes.parse().ok()?;
    let seconds: f64 = seconds.replace(',', ".").parse().ok()?;
    let seconds = Duration::try_from_secs_f64(seconds).ok()?;
    Some(seconds.saturating_add(Duration::from_secs(minutes.checked_mul(60)?)))
}

/// Cuts what was received to what may still become a whole answer.
pub(super) fn bound_received(received: &mut Vec<u8>) {
    if received.len() > REPLY_BYTES_MAX {
        received.drain(..received.len() - REPLY_BYTES_MAX);
    }
}

/// The text of an argv: each word quoted, so that the shell changes none of them.
pub(super) fn quote_argv<'a>(words: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut lines = Lines(Vec::new());
    for (at, word) in words.into_iter().enumerate() {
        if at > 0 {
            lines.push(" ");
        }
        lines.quoted(word);
    }
    lines.0
}

/// Whether a shell can have a variable of this name.
pub(super) fn is_name(name: &[u8]) -> bool {
    let letter = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'_';
    name.first().is_some_and(letter)
        && name.iter().all(|byte| letter(byte) || byte.is_ascii_digit())
}

impl Exports {
    fn each(&self) -> impl Iterator<Item = &Variable> {
        self.asked.iter().chain(&self.own)
    }
}

struct Lines(Vec<u8>);

impl Lines {
    fn push(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }

    /// The bytes as one word, whatever they are, NUL aside. No quote is followed by another within
    /// the word, which zsh's RC_QUOTES would read as one.
    fn quoted(&mut self, bytes: &[u8]) {
        self.0.push(b'\'');
        for byte in bytes {
            if *byte == b'\'' {
                self.0.extend_from_slice(b"'\\''");
            } else {
                self.0.push(*byte);
            }
        }
        self.0.push(b'\'');
    }

    /// `command` and the assignment, without an end of the line.
    fn assign(&mut self, command: &str, (name, value): &Variable) {
        self.push(command);
        self.0.extend_from_slice(name);
        self.push("=");
        self.quoted(value);
    }

    fn streams(&mut self, paths: &Paths<'_>) {
        let Paths { stdin, stdout, stderr, .. } = paths;
        self.push(&format!(" <{stdin} >|{stdout} "));
        match stderr {
            Some(path) => self.push(&format!("2>|{path}")),
            None => self.push("2>&1"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_quoted_whole() {
        let words: [&[u8]; 4] = [b"a b", b"", b"it's", b"''"];
        assert_eq!(quote_argv(words), br"'a b' '' 'it'\''s' ''\'''\'''");
    }

    #[test]
    fn an_answer_is_read_once_it_is_whole() {
        let whole = b"@7 3\n0m0.010s 0m0.020s\n1m2,500s 0m0.000s\n";
        for end in 0..whole.len() {
            let mut driver = Driver::new(Dialect::Bash);
            assert_eq!(driver.read(7, "/a", &whole[..end]), None, "{end}");
        }
        let mut driver = Driver::new(Dialect::Bash);
        let cpu =
            CpuTime { user: Duration::from_millis(62_510), system: Duration::from_millis(20) };
        assert_eq!(driver.read(7, "/a", whole), Some(Answer::Status(3, cpu)));
        // The shell's account only grows; a command's is the difference.
        let again = b"@8 0\n0m0.010s 0m0.030s\n1m2,500s 0m0.000s\n";
        let cpu = CpuTime { user: Duration::ZERO, system: Duration::from_millis(10) };
        assert_eq!(driver.read(8, "/a", again), Some(Answer::Status(0, cpu)));
    }

    #[test]
    fn what_others_write_is_no_answer() {
        let mut driver = Driver::new(Dialect::Posix);
        for line in ["@6 0\n", "@7 256\n", "@7\n", "nonsense\n", "0m s\n"] {
            assert_eq!(driver.read(7, "/a", line.as_bytes()), None, "{line:?}");
        }
        let mixed = b"mine\n@6 1\n@7 2\n0m0.0s 0m0.0s\n\xff\n0m0.0s 0m0.0s\n";
        let answer = driver.read(7, "/a", mixed);
        assert_eq!(answer, Some(Answer::Status(2, CpuTime::default())));
    }

    #[test]
    fn the_variable_that_stops_a_trial_is_the_last_one_tried() {
        let read = |text: &str| Driver::read_trial(7, text.as_bytes());
        assert_eq!(read("@7 ?A\nnoise\n@7 ?B\n@7 +"), None);
        assert_eq!(read("@7 ?A\nnoise\n@7 ?B\n@7 +\n"), Some(Tried::Settable));
        assert_eq!(read("@6 +\n@7 ?A\n@7 ?B\n@8 +\n"), None);
        assert_eq!(read("@7 ?A\n@7 ?B\n@7 -\n"), Some(Tried::NotSettable("B".into())));
    }

    #[test]
    fn times_without_a_status_mean_that_command_is_another() {
        let mut driver = Driver::new(Dialect::Posix);
        let Some(Answer::AskAgain(line)) =
            driver.read(1, "/a", b"hm\n0m0.0s 0m0.0s\n0m0.0s 0m0.0s\n")
        else {
            panic!("a status is missing");
        };
        assert!(line.starts_with(b"(\\unset -f printf;"));
    }

    #[test]
    fn what_is_kept_of_an_answer_is_bounded() {
        let mut received = vec![b'x'; REPLY_BYTES_MAX];
        bound_received(&mut received);
        assert_eq!(received.len(), REPLY_BYTES_MAX);
        received.extend(b"@1 0\n");
        bound_received(&mut received);
        assert_eq!(received.len(), REPLY_BYTES_MAX);
        assert!(received.ends_with(b"x@1 0\n"));
    }

    #[test]
    fn names_of_variables_are_those_of_a_shell() {
        for name in ["A", "_", "a1_B"] {
            assert!(is_name(name.as_bytes()));
        }
        for name in ["", "1a", "a-b", "a b", "\u{e9}", "a="] {
            assert!(!is_name(name.as_bytes()));
        }
    }
}
