//! `afar serve --classic` against small blocking clients in the style of the scripts that speak the
//! classic protocol, which these tests write themselves, and against who has no business there.

use std::fs::DirBuilder;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::DirBuilderExt as _;

use afar_e2e::{
    Account, DEADLINE, Digest, Fifo, Home, Host, Output, Run, Sink, afar, can_make_accounts,
};

/// What the scripts do: a length with `struct`, a header with `json`, a loop for the rest.
const CLIENT: &str = r#"
import json, socket, struct, sys

def connect():
    client = socket.socket()
    client.connect((sys.argv[1], int(sys.argv[2])))
    return client

def ask(client, command, read=1024):
    client.send(command.encode('utf-8'))
    length = struct.unpack('i', client.recv(4))[0]
    header = json.loads(client.recv(length).decode('utf-8'))
    total, output = header['data_size'], []
    got = 0
    while got < total:
        piece = client.recv(min(read, total - got))
        assert piece, 'the server has gone'
        got += len(piece)
        output.append(piece)
    return b''.join(output)

def ask_bytewise(client, command):
    def exactly(count):
        bytes = b''
        while len(bytes) < count:
            piece = client.recv(1)
            assert piece, 'the server has gone'
            bytes += piece
        return bytes
    client.sendall(command.encode('utf-8'))
    length = struct.unpack('i', exactly(4))[0]
    return exactly(json.loads(exactly(length))['data_size'])

def pattern(size):
    return (b'0123456789\n' * (size // 11 + 1))[:size]

def output_of(size):
    return 'yes 0123456789 | head -c %d' % size
"#;

fn python(home: &Home, address: SocketAddr, program: &str) -> Run {
    let script = home.write("client.py", format!("{CLIENT}{program}"));
    home.program("python3", [script]).arg(address.ip().to_string()).arg(address.port().to_string())
}

fn python_says(host: &Host, program: &str) -> Output {
    let output = python(host, host.classic_address(), program).output();
    output.success();
    output
}

fn connect(host: &Host) -> TcpStream {
    let stream = TcpStream::connect(host.classic_address()).expect("the server listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("there is such an option");
    stream
}

/// The next answer.
fn answer(stream: &mut TcpStream) -> Vec<u8> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).expect("the length of a header");
    let mut header = vec![0; usize::try_from(i32::from_le_bytes(length)).expect("no sign")];
    stream.read_exact(&mut header).expect("a header");
    let header: serde_json::Value = serde_json::from_slice(&header).expect("JSON");
    let size = header["data_size"].as_u64().expect("a size");
    let mut output = vec![0; usize::try_from(size).expect("it fits into memory")];
    stream.read_exact(&mut output).expect("the output");
    output
}

fn ask(stream: &mut TcpStream, command: &str) -> String {
    stream.write_all(command.as_bytes()).expect("the server reads");
    String::from_utf8(answer(stream)).expect("text")
}

/// What is left until the server closes.
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    // A reset is a close too.
    let _ = stream.read_to_end(&mut rest);
    rest
}

#[test]
fn a_script_reads_outputs_of_any_size() {
    let host = Host::builder().classic().start();
    python_says(
        &host,
        "
client = connect()
for size in [0, 1, 1023, 1024, 1025, 100_000, 0]:
    assert ask(client, output_of(size)) == pattern(size), size
assert ask(client, output_of(100_000_000), 65536) == pattern(100_000_000)
assert ask(client, 'echo still there') == b'still there\\n'
",
    );
}

#[test]
fn a_script_that_reads_each_byte_alone_gets_the_same() {
    let host = Host::builder().classic().start();
    python_says(
        &host,
        "
client = connect()
for size in [0, 1, 1023, 1024, 1025, 20_000]:
    assert ask_bytewise(client, output_of(size)) == pattern(size), size
",
    );
}

#[test]
fn what_a_terminal_would_have_shown_is_answered() {
    // C-6.2: merged in order; C-6.1: no stdin.
    let host = Host::builder().classic().start();
    let mut client = connect(&host);
    let script = "for i in 1 2 3; do echo out $i; echo err $i >&2; done";
    let expected = "out 1\nerr 1\nout 2\nerr 2\nout 3\nerr 3\n";
    assert_eq!(ask(&mut client, script), expected);
    assert_eq!(ask(&mut client, "cat; read x; echo $?; echo done"), "1\ndone\n");
    assert_eq!(ask(&mut client, "echo only err >&2"), "only err\n");
    let said = ask(&mut client, "afar-no-such-program");
    assert!(said.contains("not found"), "{said}");
    assert_eq!(ask(&mut client, "printf '\\377\\000x' | od -An -tx1"), " ff 00 78\n");
}

#[test]
fn the_state_of_the_shell_lasts_for_the_connection() {
    // C-6.1.
    let host = Host::builder().classic().start();
    let (mut one, mut other) = (connect(&host), connect(&host));
    assert_eq!(ask(&mut one, "cd /usr; x='a  b'; export y=z; f() { echo \"f $1\"; }"), "");
    assert_eq!(ask(&mut one, "pwd; echo \"$x\"; f 1; sh -c 'echo $y'"), "/usr\na  b\nf 1\nz\n");
    assert_eq!(ask(&mut other, "pwd; echo \"[$x$y]\""), format!("{}\n[]\n", home_of_user()));
    // An unfinished quote is an error, and not the beginning of the next command.
    assert!(!ask(&mut one, "echo 'unfinished").is_empty());
    assert_eq!(ask(&mut one, "pwd"), "/usr\n");
    // The shell ends; the conversation does not.
    assert_eq!(ask(&mut one, "echo last; exit 3"), "last\n");
    assert_eq!(ask(&mut one, "pwd"), format!("{}\n", home_of_user()));
}

fn home_of_user() -> String {
    let user = afar_sys::users::current_user().expect("a user database").expect("a user");
    user.home.to_str().expect("UTF-8").to_owned()
}

#[test]
fn commands_of_any_length_are_one_command() {
    // C-3.2, C-3.3, C-3.4.
    let host = Host::builder().classic().start();
    let mut client = connect(&host);
    for length in [1, 1023, 1024, 1025, 2048, 100_000] {
        let command = format!("{}echo {length}", " ".repeat(length));
        assert_eq!(ask(&mut client, &command[command.len() - length.max(6)..]).trim(), {
            if length < 6 { "1" } else { &command[length + 5..] }
        });
    }
    // In the pieces that a network makes of it, as soon as the first is a read or longer.
    let _ = client.set_nodelay(true);
    client.write_all(format!("{}echo ", " ".repeat(1100)).as_bytes()).unwrap();
    client.write_all(b"in pieces").unwrap();
    assert_eq!(answer(&mut client), b"in pieces\n");
}

#[test]
fn what_arrives_while_a_command_runs_is_the_next_command() {
    // C-2.2.
    let host = Host::builder().classic().start();
    let (started, go) = (host.fifo("started"), host.fifo("go"));
    let mut client = connect(&host);
    let command = format!("echo started > {}; read line < {}", started.word(), go.word());
    client.write_all(command.as_bytes()).unwrap();
    assert_eq!(started.line(), "started");
    client.write_all(b"echo not; ").unwrap();
    client.write_all(b"echo waited").unwrap();
    go.release();
    assert_eq!(answer(&mut client), b"");
    assert_eq!(answer(&mut client), b"not\nwaited\n");
}

#[test]
fn a_command_that_is_too_long_is_answered_and_not_run() {
    // C-3.4.
    let host = Host::builder().classic().start();
    let marker = host.file("marker");
    let mut client = connect(&host);
    let command = format!("touch {} #{}", marker.display(), "x".repeat(600_000));
    client.write_all(command.as_bytes()).unwrap();
    let said = String::from_utf8(answer(&mut client)).unwrap();
    assert!(said.contains("longer than 524288 bytes; nothing was run"), "{said}");
    assert_eq!(rest(&mut client), b"");

    // One that arrives while another command runs does not end that one.
    let (started, go) = (host.fifo("started"), host.fifo("go"));
    let mut client = connect(&host);
    let waiting = format!("echo started > {}; read line < {}", started.word(), go.word());
    client.write_all(waiting.as_bytes()).unwrap();
    assert_eq!(started.line(), "started");
    client.write_all(command.as_bytes()).unwrap();
    go.release();
    assert_eq!(answer(&mut client), b"");
    assert!(answer(&mut client).starts_with(b"afar: the command is longer than"));
    assert!(!marker.exists());
}

/// Has a command started that does not end by itself, nor what it put into the background.
///
/// A program of its own says that it has started: what a shell forks is told from the shell only
/// once it has executed something.
fn wait_for_ever(client: &mut TcpStream, started: &Fifo) {
    let waiting = format!("sh -c 'echo started > {}; exec sleep 1000'", started.word());
    let command = format!("sleep 1000 & {waiting}");
    client.write_all(command.as_bytes()).expect("the server reads");
    assert_eq!(started.line(), "started");
}

#[test]
fn fifty_clients_at_once_and_one_that_waits_for_ever() {
    // C-6.6.
    let host = Host::builder().classic().start();
    let started = host.fifo("started");
    let mut stuck = connect(&host);
    wait_for_ever(&mut stuck, &started);
    python_says(
        &host,
        "
clients = [connect() for _ in range(50)]
for number, client in enumerate(clients):
    client.send(('x=%d; %s' % (number, output_of(number * 1000))).encode())
for number, client in reversed(list(enumerate(clients))):
    length = struct.unpack('i', client.recv(4))[0]
    total = json.loads(client.recv(length))['data_size']
    output = b''
    while len(output) < total:
        output += client.recv(1024)
    assert output == pattern(number * 1000), number
for number, client in enumerate(clients):
    assert ask(client, 'echo $x') == b'%d\\n' % number
",
    );
    drop(stuck);
    host.wait_until_idle();
}

#[test]
fn fault_41_memory_stays_flat_during_a_large_output() {
    // C-6.3: through a file, until its size is known.
    const BYTES: u64 = 512 * 1024 * 1024;
    let host = Host::builder().classic().start();
    let address = host.classic_address().to_string();
    let command = format!("yes 0123456789 | head -c {BYTES}");
    let run = host.afar(["classic", &address, "-c", &command]).stdout_to(Sink::Digest);
    let output = run.output();
    let bytes = output.success().digest.as_ref().map(|digest: &Digest| digest.bytes);
    assert_eq!(bytes, Some(BYTES));
    let supervisor = host.supervisor().expect("it has run a command");
    for process in [host.listener(), &supervisor] {
        let memory = process.memory();
        assert!(memory.peak < 48 * 1024 * 1024, "{memory:?}");
    }
    // The file had no name, and is gone.
    let files = std::fs::read_dir(host.file("home/state/afar/classic")).unwrap();
    assert_eq!(files.count(), 0);
}

#[test]
fn fault_58_an_output_that_cant_be_kept_is_an_error_and_no_cut_answer() {
    // C-6.4, C-6.5.
    let host = Host::builder().classic().start();
    let state = host.file("home/state/afar");
    DirBuilder::new().recursive(true).mode(0o700).create(&state).unwrap();
    std::fs::write(state.join("classic"), "in the way").unwrap();
    let mut client = connect(&host);
    let said = ask(&mut client, "yes | head -c 10000000");
    assert!(said.starts_with("afar: the output is too long for memory"), "{said}");
    assert_eq!(said.lines().count(), 1);
    // One that never ends is ended, because nobody reads it any more.
    let said = ask(&mut client, "yes");
    assert!(said.starts_with("afar: the output is too long for memory"), "{said}");
    assert_eq!(ask(&mut client, "echo goes on"), "goes on\n");
}

#[test]
fn fault_51_a_client_that_goes_away_has_its_command_ended() {
    // C-2.4.
    let host = Host::builder().classic().start();
    let fifo = host.fifo("pid");
    let mut client = connect(&host);
    wait_for_ever(&mut client, &fifo);
    assert!(!host.jobs().is_empty());
    drop(client);
    host.wait_until_idle();
    // And the server serves on.
    assert_eq!(ask(&mut connect(&host), "echo next"), "next\n");
}

#[test]
fn a_client_that_only_ends_its_sending_gets_its_answer() {
    // C-2.4.
    let host = Host::builder().classic().start();
    let fifo = host.fifo("go");
    let mut client = connect(&host);
    client.write_all(format!("read line < {}; echo late", fifo.word()).as_bytes()).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    fifo.release();
    assert_eq!(answer(&mut client), b"late\n");
    assert_eq!(rest(&mut client), b"");

    // When it then goes away, its command is ended all the same.
    let mut client = connect(&host);
    client
        .write_all(format!("sleep 1000 & echo started > {}; wait", fifo.word()).as_bytes())
        .unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(fifo.line(), "started");
    drop(client);
    host.wait_until_idle();
}

#[test]
fn a_supervisor_that_is_killed_is_told_and_the_next_command_gets_another() {
    // C-6.5.
    let host = Host::builder().classic().start();
    let (started, go) = (host.fifo("started"), host.fifo("go"));
    let mut client = connect(&host);
    let command = format!("echo started > {}; read line < {}", started.word(), go.word());
    client.write_all(command.as_bytes()).unwrap();
    assert_eq!(started.line(), "started");
    host.supervisor().expect("it runs a command").kill();
    let said = String::from_utf8(answer(&mut client)).unwrap();
    assert!(said.starts_with("afar: what became of the command is not known"), "{said}");
    // What the killed one ran has nobody to end it; the fifo lets it go.
    go.release();
    assert_eq!(ask(&mut client, "echo again"), "again\n");
}

#[test]
fn afars_own_client_and_server_understand_each_other() {
    let host = Host::builder().classic().start();
    let address = host.classic_address().to_string();
    let lines = "cd /usr\n\npwd\ntrue\necho x >&2";
    let output = host.afar(["classic", &address]).stdin(lines).output();
    assert_eq!(output.success().text(), "/usr\nx\n");
}

#[test]
fn fault_08_other_protocols_are_closed_logged_escaped_and_nothing_is_run() {
    // C-5.4.
    let host = Host::builder().classic().start();
    let marker = host.file("marker");
    let touch = format!("touch {}", marker.display());
    let mut tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec();
    tls.extend(touch.as_bytes());
    let post = format!(
        "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\n\r\n\n{touch}\n"
    );
    let long = format!("POST /{} HTTP/1.1\r\n\r\n\n{touch}\n", "x".repeat(5000));
    let cases: [&[u8]; 5] = [
        post.as_bytes(),
        long.as_bytes(),
        b"\x1b[2J x HTTP/1.1",
        &tls,
        b"SSH-2.0-OpenSSH_10.0\r\n",
    ];
    for opening in cases {
        let mut client = connect(&host);
        client.write_all(opening).unwrap();
        assert_eq!(rest(&mut client), b"", "{}", opening.escape_ascii());
    }
    assert!(!marker.exists());
    let log = host.log();
    for name in ["an HTTP request", "a TLS handshake", "an SSH identification"] {
        assert!(log.contains(name), "{name}: {log}");
    }
    assert!(!log.contains('\x1b') && log.contains("\\x1b[2J"), "{log}");
    assert!(host.supervisor().is_none(), "nobody was asked to run anything");
}

/// Says so, past what captures the output of tests.
fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

/// A client that acts as somebody else: whoever runs these tests must be root for that.
fn as_nobody(host: &Host, program: &str) -> Option<Output> {
    if afar_sys::users::effective_uid() != 0 {
        skipped("only root can act as another user");
        return None;
    }
    let program =
        format!("import os\nos.setgroups([])\nos.setgid(65534)\nos.setuid(65534)\n{program}");
    let run = python(host, host.classic_address(), &program);
    Some(run.output())
}

#[test]
fn another_user_gets_nothing_run() {
    // C-5.1, C-5.2.
    let host = Host::builder().classic().start();
    let marker = host.file("marker");
    let program = format!(
        "
client = connect()
client.send(b'touch {0}')
try:
    assert client.recv(1) == b''
except ConnectionResetError:
    pass
# Gone before anybody can look whose it was: the kernel tells root's uid of such a socket.
for _ in range(50):
    client = connect()
    client.send(b'touch {0}')
    client.close()
# The same with a reset.
for _ in range(50):
    client = connect()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    client.send(b'touch {0}')
    client.close()
# And with an end of sending only.
client = connect()
client.send(b'touch {0}')
client.shutdown(socket.SHUT_WR)
try:
    assert client.recv(1) == b''
except ConnectionResetError:
    pass
",
        marker.display()
    );
    let Some(output) = as_nobody(&host, &program) else { return };
    output.success();
    // The server has dealt with all of them once it answers a later one.
    assert_eq!(ask(&mut connect(&host), "echo ours"), "ours\n");
    assert!(!marker.exists());
    assert!(host.log().contains("uid 65534 may not run commands here"), "{}", host.log());
}

#[test]
fn root_has_the_commands_run_by_another_account_as_that_account() {
    // C-5.2.
    if !can_make_accounts() {
        return;
    }
    let (account, stranger) = (Account::new(), Account::new());
    let mut builder = Host::builder().serve_accounts();
    for word in ["--classic", "127.0.0.1:0", "--classic-user", account.name()] {
        builder = builder.serve_arg(word);
    }
    let host = builder.start();
    let mut client = connect(&host);
    let expected = format!("{}\n{}\n", account.name(), account.home().display());
    assert_eq!(ask(&mut client, "id -un; pwd"), expected);
    assert!(ask(&mut client, "cat /etc/shadow").contains("Permission denied"));
    // More than memory is meant for goes through root's file, of which the account sees nothing.
    assert_eq!(ask(&mut client, "yes | head -c 1000000").len(), 1_000_000);
    // The account itself may ask, and nobody else.
    let address = host.classic_address().to_string();
    let asked = |by: &Account| by.program(afar(), ["classic", &address, "-c", "id -un"]).output();
    assert_eq!(asked(&account).success().text(), format!("{}\n", account.name()));
    let refused = asked(&stranger);
    assert_eq!(refused.expect_code(255).text(), "");
    let uid = stranger.uid();
    let log = host.log();
    assert!(log.contains(&format!("uid {uid} may not run commands here")), "{log}");
}

#[test]
fn where_everybody_may_reach_it_a_user_of_this_machine_is_still_held_to_its_uid() {
    // C-5.3. (0.0.0.0 is this machine to a client.)
    let builder = Host::builder().classic_at("0.0.0.0:0");
    let host = builder.serve_arg("--dangerously-classic-anywhere").start();
    assert_eq!(ask(&mut connect(&host), "echo ours"), "ours\n");
    let refused = "
client = connect()
client.send(b'echo x')
try:
    assert client.recv(1) == b''
except ConnectionResetError:
    pass
";
    let Some(output) = as_nobody(&host, refused) else { return };
    output.success();
}

#[test]
fn what_is_dangerous_has_to_be_asked_for() {
    // C-2.1, C-5.2.
    let home = Home::new();
    let refused = |words: &[&str]| {
        let run = words.iter().fold(home.afar(["serve", "--listen", "127.0.0.1:0"]), Run::arg);
        let output = run.output();
        let said = output.expect_code(255).error_text().to_owned();
        assert_eq!(said.lines().count(), 1, "{said}");
        said
    };
    let user = home.user().to_owned();
    let said = refused(&["--classic", "0.0.0.0:0", "--classic-user", &user]);
    assert!(said.contains("--dangerously-classic-anywhere"), "{said}");
    assert!(refused(&["--classic-user", &user]).contains("--classic"));
    assert!(refused(&["--dangerously-classic-anywhere"]).contains("--classic"));
    let checked = ["--check", "--classic", "0.0.0.0:0", "--classic-user", &user];
    assert!(refused(&checked).contains("--dangerously-classic-anywhere"));
    let said = refused(&["--classic", "127.0.0.1:0", "--classic-user", "no-such-user-here"]);
    assert!(said.contains("there is no such user"), "{said}");
    if afar_sys::users::effective_uid() == 0 {
        let said = refused(&["--classic", "127.0.0.1:0"]);
        assert!(said.contains("--classic-user NAME"), "{said}");
    } else {
        skipped("only root has to say as whom");
    }
}

#[test]
fn without_the_flag_nothing_of_it_is_there() {
    // C-2.1.
    let host = Host::start();
    let ready = std::fs::read_to_string(host.file("ready")).unwrap();
    assert_eq!(ready.lines().count(), 1);
    assert!(!host.log().contains("classic"), "{}", host.log());
}
