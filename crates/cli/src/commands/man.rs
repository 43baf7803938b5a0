//! `afar man`: the manual pages, made from the same definition as the help.

use std::borrow::Cow;
use std::io::{self, Write as _};
use std::path::Path;

use clap_mangen::Man;

use crate::args::ManArgs;
use crate::commands::completions::visible;
use crate::console::{say, write_stdout};
use crate::exit::Exit;

/// Prints a page, or writes all of them.
pub(crate) fn cmd_man(args: &ManArgs) -> Exit {
    let pages = match pages() {
        Ok(pages) => pages,
        Err(error) => {
            say(&format!("man: {error}"));
            return Exit::Failed;
        }
    };
    if let Some(directory) = &args.output_dir {
        return match write_all(&pages, directory) {
            Ok(()) => Exit::Status(0),
            Err(error) => {
                say(&format!("man: cannot write to {}: {error}", directory.display()));
                Exit::Failed
            }
        };
    }
    let name = args.command.as_ref().map_or("afar".to_owned(), |command| format!("afar-{command}"));
    match pages.iter().find(|page| page.name == name) {
        Some(page) => write_stdout(&page.text),
        None => {
            say(&format!("man: there is no page {name}"));
            Exit::Failed
        }
    }
}

struct Page {
    name: String,
    text: Vec<u8>,
}

fn pages() -> io::Result<Vec<Page>> {
    let mut command = visible();
    command.build();
    let mut pages = vec![page("afar", command.clone())?];
    for sub in command.get_subcommands() {
        let name = format!("afar-{}", sub.get_name());
        pages.push(page(&name, sub.clone())?);
    }
    Ok(pages)
}

/// The usual sections of a manual page (man-pages(7)), those behind the options from the text that
/// `--help` has behind them, and what all commands have in common.
fn page(name: &str, command: clap::Command) -> io::Result<Page> {
    let mut text = Vec::new();
    let help = command.get_after_long_help().or_else(|| command.get_after_help());
    let sections = sections(&help.map(ToString::to_string).unwrap_or_default());
    let connects = command.get_arguments().any(|argument| argument.get_id() == "known_hosts");
    let has_subcommands = command.has_subcommands();
    let kind = match name {
        "afar-serve" => Kind::Serves,
        _ if connects || has_subcommands => Kind::Connects,
        _ => Kind::Other,
    };
    let man = Man::new(command)
        .title(name.to_uppercase())
        .section("1")
        .source(concat!("afar ", env!("CARGO_PKG_VERSION")))
        .manual("User Commands");
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if has_subcommands {
        man.render_subcommands_section(&mut text)?;
    }
    for section in &sections {
        section.render(&mut text)?;
    }
    if sections.iter().all(|section| section.heading != EXIT_STATUS.heading) {
        EXIT_STATUS.render(&mut text)?;
    }
    for (heading, entries) in [("ENVIRONMENT", kind.environment()), ("FILES", kind.files())] {
        if !entries.is_empty() {
            writeln!(text, ".SH {heading}")?;
        }
        for (entry, meaning) in entries {
            writeln!(text, ".TP\n\\fB{}\\fR\n{}", escape(entry), escape(meaning))?;
        }
    }
    let see_also =
        if has_subcommands { "ssh(1), ssh_config(5), sshd(8)" } else { "afar(1), ssh(1)" };
    writeln!(text, ".SH \"SEE ALSO\"\n{}", escape(see_also))?;
    Ok(Page { name: name.to_owned(), text })
}

/// What a command has to do with files and variables.
#[derive(Clone, Copy)]
enum Kind {
    Connects,
    Serves,
    Other,
}

type Entry = (&'static str, &'static str);

const CONFIGURATION: Entry = (
    "$XDG_CONFIG_HOME/afar/config.toml, /etc/afar/config.toml",
    "Afar's own configuration; ~/.config is the default of XDG_CONFIG_HOME.",
);

impl Kind {
    fn environment(self) -> &'static [Entry] {
        match self {
            Self::Connects => &[
                ("AFAR_SSH", "The ssh program for ssh://HOST, where --ssh names none."),
                ("SSH_AUTH_SOCK", "The ssh-agent that is asked for keys."),
                ("XDG_CONFIG_HOME, XDG_STATE_HOME, XDG_RUNTIME_DIR", "Move the files of afar."),
                ("HOME", "Where ~ leads."),
            ],
            Self::Serves => &[
                ("NOTIFY_SOCKET", "Where it is told that the server is ready (sd_notify(3))."),
                ("XDG_CONFIG_HOME, XDG_STATE_HOME, XDG_RUNTIME_DIR", "Move the files of afar."),
            ],
            Self::Other => &[],
        }
    }

    fn files(self) -> &'static [Entry] {
        match self {
            Self::Connects => &[
                CONFIGURATION,
                ("~/.ssh/config", "Names of hosts, users and keys (ssh_config(5))."),
                ("~/.ssh/known_hosts, /etc/ssh/ssh_known_hosts", "The keys of known hosts."),
                ("~/.ssh/id_ed25519, ~/.ssh/id_ecdsa, ~/.ssh/id_rsa", "Keys that are offered."),
            ],
            Self::Serves => &[
                CONFIGURATION,
                ("~/.ssh/authorized_keys", "Who may log in (sshd(8))."),
                ("/etc/ssh/ssh_host_*_key", "The host keys, where they can be read."),
                ("$XDG_STATE_HOME/afar/", "A host key of the server's own, and logs."),
            ],
            Self::Other => &[],
        }
    }
}

/// A section of a page.
struct Section {
    heading: Cow<'static, str>,
    /// In paragraphs; lines that begin with blanks stay as they are.
    text: Cow<'static, str>,
}

const EXIT_STATUS: Section = Section {
    heading: Cow::Borrowed("EXIT STATUS"),
    text: Cow::Borrowed("0, or 255 if afar failed, with a line that says why."),
};

/// The sections in a text of `--help`: a paragraph that begins with `Word:` begins one, and any
/// other goes on.
fn sections(help: &str) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    for paragraph in help.split("\n\n").filter(|paragraph| !paragraph.trim().is_empty()) {
        let is_word = |word: &str| word.chars().all(|c| c.is_ascii_alphabetic() || c == ' ');
        match paragraph.split_once(':').filter(|(word, _)| is_word(word)) {
            Some((word, text)) => {
                let heading = match word {
                    "Example" => "EXAMPLES".to_owned(),
                    word => word.to_uppercase(),
                };
                let text = sentence(text.strip_prefix(' ').unwrap_or(text).trim_matches('\n'));
                sections.push(Section { heading: heading.into(), text: text.into() });
            }
            None => match sections.last_mut().filter(|last| last.heading == "NOTES") {
                Some(last) => {
                    let text = last.text.to_mut();
                    text.push_str("\n\n");
                    text.push_str(paragraph);
                }
                None => sections
                    .push(Section { heading: "NOTES".into(), text: paragraph.to_owned().into() }),
            },
        }
    }
    sections
}

/// A text that went on behind a colon, as one of its own.
fn sentence(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(characters).collect()
}

impl Section {
    fn render(&self, out: &mut Vec<u8>) -> io::Result<()> {
        writeln!(out, ".SH \"{}\"", self.heading)?;
        for (index, paragraph) in self.text.split("\n\n").enumerate() {
            if index > 0 {
                writeln!(out, ".PP")?;
            }
            let mut literal = false;
            for line in paragraph.lines() {
                let indented = line.starts_with("  ");
                if indented != literal {
                    writeln!(out, "{}", if indented { ".nf" } else { ".fi" })?;
                    literal = indented;
                }
                writeln!(out, "{}", escape(if indented { line } else { line.trim() }))?;
            }
            if literal {
                writeln!(out, ".fi")?;
            }
        }
        Ok(())
    }
}

/// A line as roff(7) is to show it.
fn escape(line: &str) -> String {
    let text = line.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq");
    // A control character of roff's would make a request of the line.
    if text.starts_with('.') { format!("\\&{text}") } else { text }
}

fn write_all(pages: &[Page], directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    for page in pages {
        std::fs::write(directory.join(format!("{}.1", page.name)), &page.text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_the_outcome_is_in_it() {
        let pages = pages().unwrap();
        let names: Vec<&str> = pages.iter().map(|page| page.name.as_str()).collect();
        for name in ["afar", "afar-run", "afar-serve", "afar-demo", "afar-keys", "afar-trust"] {
            assert!(names.contains(&name), "{name}");
        }
        assert!(!names.contains(&"afar-supervisor"));
        let run = pages.iter().find(|page| page.name == "afar-run").unwrap();
        let text = String::from_utf8(run.text.clone()).unwrap();
        for word in ["streams_left_open", "max_rss_bytes", "blake3", "finished"] {
            assert!(text.contains(word), "{word}");
        }
    }

    #[test]
    fn every_page_has_the_sections_of_a_manual_page_in_their_order() {
        for page in pages().unwrap() {
            let text = String::from_utf8(page.text).unwrap();
            let headings: Vec<&str> = text
                .lines()
                .filter_map(|line| line.strip_prefix(".SH "))
                .map(|heading| heading.trim_matches('"'))
                .collect();
            let place = |wanted: &str| headings.iter().position(|heading| *heading == wanted);
            let mut before = None;
            for wanted in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "SEE ALSO"]
            {
                let at = place(wanted);
                assert!(at > before, "{}: {wanted} in {headings:?}", page.name);
                before = at;
            }
            assert!(page.name == "afar" || place("EXAMPLES").is_some(), "{}", page.name);
            let connects = ["afar", "afar-run", "afar-keys", "afar-trust", "afar-serve"];
            let has = place("FILES").is_some() && place("ENVIRONMENT").is_some();
            assert!(has || !connects.contains(&page.name.as_str()), "{}", page.name);
            let count = headings.len();
            let unique: std::collections::BTreeSet<&str> = headings.into_iter().collect();
            assert_eq!(unique.len(), count, "{}", page.name);
            // Nothing that roff would take for a request of its own.
            let known = [
                ".SH", ".TH", ".TP", ".PP", ".nf", ".fi", ".IP", ".ie", ".el", ".br", ".RS", ".RE",
            ];
            for line in text.lines().filter(|line| line.starts_with(['.', '\''])) {
                assert!(known.iter().any(|request| line.starts_with(request)), "{line}");
            }
        }
    }

    #[test]
    fn a_help_text_becomes_sections() {
        let help =
            "Examples:\n  a  b\\c\n\nTarget: one\ntwo\n\nIn\n  short\nit is.\n\nMore, too: x";
        let mut out = Vec::new();
        for section in sections(help) {
            section.render(&mut out).unwrap();
        }
        assert_eq!(
            String::from_utf8(out).unwrap(),
            ".SH \"EXAMPLES\"\n.nf\n  a  b\\ec\n.fi\n.SH \"TARGET\"\nOne\ntwo\n.SH \"NOTES\"\nIn\n.nf\n  \
             short\n.fi\nit is.\n.PP\nMore, too: x\n"
        );
    }
}
