//! The syntax of the command line: the one definition that help, man pages and completions come
//! from.

mod jobs;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use afar_client::{JobId, SessionName};
use afar_core::account::{PermitRoot, parse_users};
use afar_core::authorized_keys::{SourceError, SourceList};
use afar_core::duration;
use afar_server::launch::SOCKET_DIR;
use clap::{ArgAction, Args, Parser, Subcommand};

use crate::console::Verbosity;
use crate::run::EscapeCharacter;
pub(crate) use jobs::{
    AttachArgs, KillArgs, LastingArgs, LogsArgs, OnDisconnectWord, PsArgs, Range, RmArgs, Since,
    WaitArgs,
};

/// Runs commands on other machines and gives back exactly what a terminal there would have shown.
#[derive(Debug, Parser)]
#[command(name = "afar", version, arg_required_else_help = true, max_term_width = 100)]
#[command(disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(Box<RunArgs>),
    Shell(Box<ShellArgs>),
    Repl(ReplArgs),
    Ps(PsArgs),
    Logs(Box<LogsArgs>),
    Attach(AttachArgs),
    Wait(WaitArgs),
    Kill(KillArgs),
    Rm(RmArgs),
    Demo(DemoArgs),
    Serve(ServeArgs),
    Classic(ClassicArgs),
    Stdio(StdioArgs),
    Keys(KeysArgs),
    Trust(TrustArgs),
    Config(ConfigArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
    /// Runs one user's jobs; started when it is needed.
    #[command(hide = true)]
    Supervisor(SupervisorArgs),
    /// Becomes a user, as root, and then that user's supervisor; started when it is needed.
    #[command(hide = true)]
    AsUser(AsUserArgs),
}

const RUN_EXAMPLES: &str = "\
Examples:
  afar run web -- ls -l '/tmp/a b'          exactly these arguments: no shell in between
  afar run web -c 'ls | wc -l'              a script, through the user's shell there
  tar c . | afar run web -- tar x -C /srv   stdin, stdout and stderr as with ssh
  afar run --timeout 30s --result out.json web make
  afar run --session s web -- cd /srv       a shell there that lasts: the next run of the session s
  afar run --session s web -c 'make && ls'  is in /srv
  afar run local id                         this machine, through its supervisor
  afar run ssh://web make                   through ssh: nothing has to listen there
  afar run -t web htop                      on a terminal like ours; ~? lists its escapes
  afar run -d web -- ./backup               leave it alone at once; prints TARGET/JOB
  afar run --id nightly-0412 web ./report   however often this is asked for: started once

Target: [USER@]HOST[:PORT], afar://…, an IPv6 address in brackets, a Host alias of ~/.ssh/config,
local, or ssh://…, which is reached by ssh and its own rules. The port is 2327 unless it is given.

Exit status: that of the command; 128+N when signal N ended it; 124 for --timeout; 126 when the
program is not executable and 127 when it is not found; 130 when it was cancelled; 137 when it ran
out of memory; 255 when afar itself failed, or the end is not known, with a line that says so.

Signals: HUP, INT, QUIT, TERM, USR1 and USR2 are passed on to the command. Three INT within a second
(Ctrl-C, three times), or a second TERM or HUP, leave and cancel it; with --on-disconnect keep they
leave it alone, and print TARGET/JOB on stderr. While the connection is lost they are kept and sent
once; a second INT, QUIT, TERM or HUP leaves then.

A lost connection is made again, without asking anybody anything, and the command goes on in both
directions as if nothing had been; --reconnect-for bounds that. A command whose client is gone for good
runs on: `afar ps` finds it, `afar attach` goes on with it, `afar kill` ends it.";

const JSON_EVENTS: &str = "\
Events of --json, one object a line on stdout:
  {\"event\":\"started\",\"job\":…,\"pid\":…,\"started_at\":…}
  {\"event\":\"output\",\"stream\":\"stdout\"|\"stderr\",\"offset\":…,\"time_s\":…,\"data\":…}
  {\"event\":\"attached\",\"job\":…,\"pid\":…,\"started_at\":…}   it was there already
  {\"event\":\"gap\",\"stream\":…,\"from\":…,\"to\":…}           bytes that are not there any more
  {\"event\":\"end\",\"stream\":…}             a stream has ended
  {\"event\":\"disconnected\",\"cause\":…}, {\"event\":\"reconnected\"}
  {\"event\":\"exit\",\"end\":{…},\"wall_s\":…,\"user_s\":…,\"sys_s\":…,\"max_rss_bytes\":…}
  {\"event\":\"finished\",…}                 the outcome, always the last line
data is a string, or {\"base64\":…} where the bytes are not UTF-8.

The outcome, as --result FILE and the last event hold it:
  job, target, phase (resolve|connect|authenticate|authorize|spawn|run|stream|done),
  started (yes|no|unknown),
  end {kind: exited{code}|signaled{signal,name,core}|timeout|cancelled|oom|lost|unknown|
  not_started{reason}},
  started_at, wall_s, user_s, sys_s, max_rss_bytes,
  streams {stdout|stderr: {bytes, blake3, complete, gaps}}, streams_left_open, reconnects, error,
  verified (whole, or suffix where a part was gone before we came),
  and where there is something to say: session_restarted, detail (output_quota, unkillable), read_bytes,
  written_bytes
What can't be known is null.";

/// Run a command on another machine
///
/// PROG and its arguments arrive exactly as they are given; options of afar stand before PROG,
/// before or after TARGET.
#[derive(Args, Debug)]
#[command(after_help = RUN_EXAMPLES, after_long_help = format!("{RUN_EXAMPLES}\n\n{JSON_EVENTS}"))]
pub(crate) struct RunArgs {
    /// Where to run it
    pub(crate) target: OsString,

    /// The program and its arguments
    #[arg(value_name = "PROG", trailing_var_arg = true, required_unless_present = "script")]
    pub(crate) argv: Vec<OsString>,

    #[command(flatten)]
    pub(crate) command: CommandArgs,

    /// Let the command read nothing: its stdin ends at once
    #[arg(short = 'n')]
    pub(crate) no_stdin: bool,

    /// Use DIR as the working directory, not the home directory
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<OsString>,

    /// Set a variable over the login environment; may be repeated
    #[arg(short = 'e', long = "env", value_name = "K=V", value_parser = Variable::parser())]
    pub(crate) env: Vec<Variable>,

    /// Run it in the session NAME: cd, variables and functions last from one run to the next
    #[arg(long, value_name = "NAME", value_parser = parse_session, conflicts_with = "cwd")]
    pub(crate) session: Option<SessionName>,

    /// Send stderr where stdout goes, in their exact order
    #[arg(long)]
    pub(crate) merge: bool,

    /// End the command after this time, such as 30s or 5m, measured there from its start
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) timeout: Option<Duration>,

    /// Time from TERM to KILL when the command is ended [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) kill_after: Option<Duration>,

    /// The job's id, in place of a random one: asked for again, the same command is not started again,
    /// but gone on with, and another command is refused
    #[arg(long, value_name = "ID", value_parser = parse_id)]
    pub(crate) id: Option<JobId>,

    /// Give it a terminal like ours: what it shows is its stdout, what is typed its stdin
    #[arg(short = 't', overrides_with = "no_terminal", conflicts_with = "session")]
    pub(crate) terminal: bool,

    /// Give it no terminal, which is the default
    #[arg(short = 'T', overrides_with = "terminal")]
    pub(crate) no_terminal: bool,

    #[command(flatten)]
    pub(crate) escape: EscapeArgs,

    #[command(flatten)]
    pub(crate) lasting: LastingArgs,

    /// Print events as JSON Lines in place of the output
    #[arg(long)]
    pub(crate) json: bool,

    /// Write the outcome to FILE as one JSON object; - is stdout
    #[arg(long, value_name = "FILE")]
    pub(crate) result: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

/// A login shell on another machine, on a terminal like ours
///
/// The shell is a job that lasts: a lost connection is made again, and what was typed meanwhile is
/// sent then. Leaving it with ~. or ~d, or closing the window, lets it go on; `afar attach` returns to
/// it, from another machine too, and `afar kill` ends it.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  afar shell web
  afar shell --id work web                  asked for again, it is the same shell
  afar ps web; afar attach web/3f2a         return to a shell that was left
  afar run -t web vim notes                 a program on a terminal, without a shell

Escapes, at the beginning of a line: ~. leaves, ~d leaves quietly, ~^Z stops afar until its shell
continues it, ~? lists them, ~~ is the character itself.

The terminal is told our TERM, size and modes; LANG, LC_* and COLORTERM go there too. Exit status: that
of the shell; 0 behind ~d; 255 behind ~., and when afar itself fails.")]
pub(crate) struct ShellArgs {
    /// Where to run it
    pub(crate) target: OsString,

    /// Use DIR as the working directory, not the home directory
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<OsString>,

    /// Set a variable over the login environment; may be repeated
    #[arg(short = 'e', long = "env", value_name = "K=V", value_parser = Variable::parser())]
    pub(crate) env: Vec<Variable>,

    /// The job's id, in place of a random one: asked for again, it is the same shell
    #[arg(long, value_name = "ID", value_parser = parse_id)]
    pub(crate) id: Option<JobId>,

    #[command(flatten)]
    pub(crate) escape: EscapeArgs,

    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

/// How afar is spoken to at the terminal of a job.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct EscapeArgs {
    /// What begins an escape at a terminal: a character, ^X, or none
    #[arg(long, value_name = "CHAR", default_value = "~", value_parser = EscapeCharacter::parse)]
    pub(crate) escape: EscapeCharacter,
}

/// A prompt: each line runs on another machine, in one shell
///
/// What cd, variables and functions set lasts from line to line. With stdin that is no terminal, a
/// command a line is read from it, without a prompt, and the status is that of the last one.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  afar repl web                             a prompt; :help tells more, Ctrl-D leaves
  afar repl --session s web                 in the session that `afar run --session s web` has, too
  afar repl web < commands                  a command a line

The commands read nothing: their stdin ends at once. For programs that want a terminal there is
`afar shell`. A prompt without --session has a shell of its own, which ends with it.")]
pub(crate) struct ReplArgs {
    /// Where to run it
    pub(crate) target: OsString,

    /// Run the lines in the session NAME of the target, which lasts
    #[arg(long, value_name = "NAME", value_parser = parse_session)]
    pub(crate) session: Option<SessionName>,

    /// Set a variable in the shell; may be repeated
    #[arg(short = 'e', long = "env", value_name = "K=V", value_parser = Variable::parser())]
    pub(crate) env: Vec<Variable>,

    /// End each line that runs for longer, such as 30s or 5m
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) timeout: Option<Duration>,

    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

/// What is executed, where it is not an argv.
#[derive(Args, Debug)]
pub(crate) struct CommandArgs {
    /// Run SCRIPT through the user's shell there, as its -c, in place of PROG
    #[arg(short = 'c', value_name = "SCRIPT", conflicts_with = "argv", allow_hyphen_values = true)]
    pub(crate) script: Option<OsString>,
}

/// Try afar out: a server, a client and a command, all on this machine
///
/// Starts a server on a free loopback port with fresh throwaway keys, reaches it over real TLS, runs
/// the command, shows its output, ends with its status, and cleans up.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  afar demo -- uname -a
  afar demo -c 'echo out; echo err >&2; exit 3'")]
pub(crate) struct DemoArgs {
    /// The program and its arguments
    #[arg(value_name = "PROG", trailing_var_arg = true)]
    pub(crate) argv: Vec<OsString>,

    #[command(flatten)]
    pub(crate) command: CommandArgs,

    /// Say nothing but what the command says
    #[arg(short = 'q')]
    pub(crate) quiet: bool,
}

/// Let clients run commands here
///
/// As an ordinary user it serves that user; as root every user of this machine whom it authenticates,
/// each as that user. Takes the keys of the user's ~/.ssh/authorized_keys, with
/// sshd's options and permission rules, and proves itself by sshd's host keys where it may read them,
/// else by a key of its own.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  afar serve                                this machine only
  afar serve --listen 0.0.0.0:2327          other machines too
  afar serve --listen 127.0.0.1:0 --ready-file /tmp/afar.addr
  afar serve --classic 127.0.0.1:8080       scripts of the classic protocol too
  afar serve --allow-groups staff --deny-users 'test*' --permit-root-login no
  afar serve --check                        is the configuration right?

SIGHUP reads the configuration anew; a mistake in it is logged, and the old one stays.")]
pub(crate) struct ServeArgs {
    /// Read this configuration in place of ~/.config/afar/config.toml and /etc/afar/config.toml;
    /// none for none
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Check configuration, keys and addresses, and leave
    #[arg(long)]
    pub(crate) check: bool,

    /// Have the supervisors that run go on as the program that is installed now, with their jobs, say
    /// what has come of it, and leave; as root those of all users
    #[arg(long, conflicts_with = "check")]
    pub(crate) upgrade: bool,

    /// Listen on this address; may be repeated; port 0 picks a free one [default: 127.0.0.1:2327]
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Vec<String>,

    /// Write the actual addresses to FILE, a line each, those of --classic last, once connections are
    /// accepted
    #[arg(long, value_name = "FILE")]
    pub(crate) ready_file: Option<PathBuf>,

    /// Prove this host key; may be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) host_key: Vec<PathBuf>,

    /// Take the keys of FILE, where %h is the user's home and %u the user's name; may be repeated
    /// [default: %h/.ssh/authorized_keys]
    #[arg(long, value_name = "FILE")]
    pub(crate) authorized_keys: Vec<String>,

    /// Take certificates of the authorities whose public keys are in FILE, for the users that they
    /// name (as sshd's TrustedUserCAKeys)
    #[arg(long, value_name = "FILE")]
    pub(crate) trusted_user_ca_keys: Option<PathBuf>,

    /// Refuse the keys and certificates that FILE lists: a KRL of ssh-keygen, or a public key a line;
    /// while it can't be read, refuse all (as sshd's RevokedKeys)
    #[arg(long, value_name = "FILE")]
    pub(crate) revoked_keys: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) accounts: AccountArgs,

    /// Put no penalties for failed logins on these addresses: addresses, networks (10.0.0.0/8) and
    /// patterns (10.1.*), several by comma, those with ! excepted
    #[arg(long, value_name = "LIST", value_parser = source_list)]
    pub(crate) penalty_exempt: Option<SourceList>,

    /// Answer the classic protocol too, there; may be repeated; the port is 8080 unless it is given
    ///
    /// For scripts on this machine: it proves nobody and hides nothing. Only processes of the user who
    /// runs the server, of NAME and of root are answered, going by what the kernel says of them.
    #[arg(long, value_name = "ADDR")]
    pub(crate) classic: Vec<String>,

    /// Run the commands of the classic protocol as NAME; needed by root
    #[arg(long, value_name = "NAME")]
    pub(crate) classic_user: Option<String>,

    /// Allow --classic addresses that other machines reach, and let everybody there run commands
    #[arg(long)]
    pub(crate) dangerously_classic_anywhere: bool,

    #[command(flatten)]
    pub(crate) verbosity: VerbosityArgs,
}

/// Which accounts may come in, as sshd_config(5) has it.
#[derive(Args, Debug)]
pub(crate) struct AccountArgs {
    /// Let only these users in: patterns (dev*), several by comma, with @ and an address or network
    /// (ann@10.0.0.0/8) if they are to come from there; may be repeated
    #[arg(long, value_name = "LIST", value_parser = users)]
    pub(crate) allow_users: Vec<String>,

    /// Do not let these users in, whatever allows them
    #[arg(long, value_name = "LIST", value_parser = users)]
    pub(crate) deny_users: Vec<String>,

    /// Let only the members of these groups in: patterns, several by comma; may be repeated
    #[arg(long, value_name = "LIST")]
    pub(crate) allow_groups: Vec<String>,

    /// Do not let the members of these groups in, whatever allows them
    #[arg(long, value_name = "LIST")]
    pub(crate) deny_groups: Vec<String>,

    /// Let root in: yes, prohibit-password (the same here, and the default), forced-commands-only, or
    /// no
    #[arg(long, value_name = "WORD")]
    pub(crate) permit_root_login: Option<PermitRoot>,

    /// As root, keep the sockets for other users in DIR, in place of /run/afar, where users' own
    /// commands look for them
    #[arg(long, value_name = "DIR", default_value = SOCKET_DIR, hide_default_value = true)]
    pub(crate) socket_dir: PathBuf,
}

/// Only looks whether it is a list of users.
fn users(text: &str) -> Result<String, String> {
    parse_users(text).map(|_| text.to_owned())
}

/// The supervisor's own arguments.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct SupervisorArgs {
    /// Listen on the socket that is open as 3, and hold the lock that is open as 4
    #[arg(long)]
    pub(crate) passed: bool,

    /// Go on with what the program before this one has left in this descriptor
    #[arg(long, value_name = "FD", conflicts_with = "passed")]
    pub(crate) resume: Option<i32>,

    /// Only say whether it could go on with what stdin has
    #[arg(long, conflicts_with_all = ["passed", "resume"])]
    pub(crate) check_state: bool,
}

/// Whom to become.
#[derive(Args, Debug)]
pub(crate) struct AsUserArgs {
    /// The user's name
    pub(crate) name: OsString,

    /// The user's id
    #[arg(long, value_name = "UID")]
    pub(crate) uid: u32,

    /// Where the socket is made
    #[arg(long, value_name = "DIR")]
    pub(crate) socket_dir: PathBuf,
}

/// Talk to a server of the classic protocol: a prompt, or one command
///
/// The protocol of small Python scripts: a command goes out as it is, its output comes back behind its
/// length. Nothing is encrypted and nobody proves who they are, so keep it on this machine. At a
/// terminal lines are edited, and kept in a history; Ctrl-D leaves. The protocol tells no exit
/// status: this ends with 0 if every command was answered.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  afar classic 127.0.0.1:8080               a prompt
  afar classic 127.0.0.1:8080 -c 'ls -l'    one command
  echo uptime | afar classic 127.0.0.1      a command a line; the port is 8080 unless it is given")]
pub(crate) struct ClassicArgs {
    /// The server's address
    #[arg(value_name = "ADDR")]
    pub(crate) address: String,

    /// Send this command, print its output and leave
    #[arg(short = 'c', value_name = "CMD", allow_hyphen_values = true)]
    pub(crate) command: Option<OsString>,

    #[command(flatten)]
    pub(crate) verbosity: VerbosityArgs,
}

/// Speak the protocol on stdin and stdout, for ssh://HOST
///
/// `afar run ssh://HOST` runs this on HOST through ssh, and it passes everything on to the user's
/// supervisor there. Nothing has to listen, and whoever ssh lets in is in.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  afar run ssh://web uname -a               runs `ssh web afar stdio`
  command=\"afar stdio\",restrict ssh-ed25519 AAAA…
                                            in authorized_keys: a key that is good for afar only")]
pub(crate) struct StdioArgs {}

/// List the keys that would be offered, in order
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  afar keys
  afar keys web                             with what ~/.ssh/config says about web")]
pub(crate) struct KeysArgs {
    /// The host that they would be offered to
    pub(crate) target: Option<OsString>,

    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

/// Show a host's key, and add it to known_hosts
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  afar trust web                            show the key and ask
  afar trust --accept-new web               add it if nothing is known of the host
  afar trust --replace web                  the host was reinstalled: take the new key")]
pub(crate) struct TrustArgs {
    /// The host
    pub(crate) target: OsString,

    /// Put the key in the place of another one of its type
    #[arg(long)]
    pub(crate) replace: bool,

    /// Do not ask: the fingerprint that the key must have, as `ssh-keygen -l` prints it
    #[arg(long, value_name = "SHA256:…")]
    pub(crate) fingerprint: Option<String>,

    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

/// Show the settings that are in effect, and where each comes from
///
/// For a target what a command there would use; without one what counts for every host.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  afar config                               what counts for every host
  afar config web                           what `afar run web` would use, and why
  afar config --serve --json                the server's, an object a line")]
pub(crate) struct ConfigArgs {
    /// The target
    pub(crate) target: Option<OsString>,

    /// Show the settings of `afar serve`
    #[arg(long, conflicts_with = "target")]
    pub(crate) serve: bool,

    /// Read this file of the server's, as `afar serve --config` does
    #[arg(long = "config", value_name = "FILE", requires = "serve")]
    pub(crate) file: Option<PathBuf>,

    /// Print an object a line
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

/// Print completions for a shell
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  afar completions bash > /etc/bash_completion.d/afar")]
pub(crate) struct CompletionsArgs {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

/// Print a manual page
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  afar man | man -l -
  afar man run | man -l -
  afar man --output-dir /usr/share/man/man1")]
pub(crate) struct ManArgs {
    /// The command that it is about
    #[arg(conflicts_with = "output_dir")]
    pub(crate) command: Option<String>,

    /// Write all pages to files in DIR
    #[arg(long, value_name = "DIR")]
    pub(crate) output_dir: Option<PathBuf>,
}

/// How much is said.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct VerbosityArgs {
    /// Say nothing on stderr unless afar itself fails
    #[arg(short = 'q', conflicts_with = "verbose")]
    quiet: bool,

    /// Say more
    #[arg(short = 'v', action = ArgAction::Count)]
    verbose: u8,
}

/// How a host is reached; the same for every command that connects.
#[derive(Args, Clone, Debug)]
pub(crate) struct ConnectArgs {
    /// Use this key file; may be repeated
    #[arg(short = 'i', value_name = "KEYFILE")]
    pub(crate) identity: Vec<PathBuf>,

    /// Connect to this port where the target names none
    #[arg(short = 'p', value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,

    /// Log in as this user where the target names none
    #[arg(short = 'l', value_name = "USER")]
    pub(crate) login: Option<String>,

    /// Read this ssh configuration in place of ~/.ssh/config; none for none
    #[arg(short = 'F', value_name = "CONFIG")]
    pub(crate) config: Option<PathBuf>,

    /// Use this file of known hosts, in place of the user's and the system's
    #[arg(long, value_name = "FILE")]
    pub(crate) known_hosts: Option<PathBuf>,

    /// Trust a host of which nothing is known yet without asking
    #[arg(long)]
    pub(crate) accept_new: bool,

    /// Time for reaching the host and logging in; what a person is asked does not count [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) connect_timeout: Option<Duration>,

    /// For how long a lost connection is made again; 0 for not at all [default: 10m]
    #[arg(long, value_name = "TIME", value_parser = jobs::parse_reconnect_for)]
    pub(crate) reconnect_for: Option<Duration>,

    /// The ssh program that reaches ssh://HOST [variable: AFAR_SSH] [default: ssh]
    #[arg(long, value_name = "PROG")]
    pub(crate) ssh: Option<OsString>,

    /// Afar's program on ssh://HOST, if it is not in the PATH of a login there
    #[arg(long, value_name = "PATH", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) remote_afar: Option<String>,

    #[command(flatten)]
    pub(crate) verbosity: VerbosityArgs,
}

/// A variable for the command's environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Variable {
    pub(crate) name: OsString,
    pub(crate) value: OsString,
}

impl Variable {
    fn parser() -> impl clap::builder::TypedValueParser<Value = Self> {
        use clap::builder::TypedValueParser as _;
        clap::builder::OsStringValueParser::new().try_map(|text| Self::parse(&text))
    }

    fn parse(text: &std::ffi::OsStr) -> Result<Self, &'static str> {
        use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
        let bytes = text.as_bytes();
        match bytes.iter().position(|byte| *byte == b'=') {
            None => Err("a variable is set with NAME=VALUE"),
            Some(0) => Err("a variable has a name"),
            Some(at) => {
                let (name, value) = bytes.split_at(at);
                let value = value.get(1..).unwrap_or_default();
                Ok(Self {
                    name: OsString::from_vec(name.to_vec()),
                    value: OsString::from_vec(value.to_vec()),
                })
            }
        }
    }
}

fn source_list(text: &str) -> Result<SourceList, SourceError> {
    SourceList::parse(text.as_bytes())
}

fn parse_id(text: &str) -> Result<JobId, String> {
    JobId::new(text).map_err(|error| error.to_string())
}

fn parse_session(text: &str) -> Result<SessionName, String> {
    SessionName::new(text).map_err(|error| error.to_string())
}

impl VerbosityArgs {
    pub(crate) fn level(self) -> Verbosity {
        match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (false, 0) => Verbosity::Normal,
            (false, _) => Verbosity::Verbose,
        }
    }
}

impl ConnectArgs {
    pub(crate) fn verbosity(&self) -> Verbosity {
        self.verbosity.level()
    }
}

#[cfg(test)]
mod tests;
