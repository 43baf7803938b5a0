//! `afar classic` against small blocking servers in the style of the scripts that speak the classic
//! protocol, which these tests write themselves.

use std::io::Read;
use std::time::Duration;

use afar_e2e::{Digest, Home, Output, Run, Running, Sink, Source, Terminal};

/// What all of them have in common: one client after the other, one `recv` a command.
const BLOCKING: &str = r#"
import json, socket, struct, subprocess, sys

def listen():
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(('127.0.0.1', 0))
    server.listen(5)
    print(server.getsockname()[1], flush=True)
    return server

def serve(answer):
    server = listen()
    connection, _ = server.accept()
    while True:
        command = connection.recv(1024)
        if not command:
            break
        answer(connection, command.decode('utf-8'))
    connection.close()
    print('ended', flush=True)

def run(command):
    done = subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return done.stdout.read() + done.stderr.read()

def pack(output, **more):
    header = json.dumps({**more, 'data_size': len(output)}).encode('utf-8')
    return struct.pack('i', len(header)), header

def headed(header):
    return struct.pack('i', len(header)) + header
"#;

/// Three sends, as the scripts do.
const THREE_SENDS: &str = "
def answer(connection, command):
    output = run(command)
    length, header = pack(output, cwd='/', md5=None)
    connection.send(length)
    connection.send(header)
    connection.sendall(output)
serve(answer)
";

/// Each byte alone, without Nagle's help.
const BYTE_BY_BYTE: &str = "
def answer(connection, command):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    output = run(command)
    for byte in b''.join(pack(output)) + output:
        connection.send(bytes([byte]))
serve(answer)
";

/// Everything with one send.
const ONE_SEND: &str = "
def answer(connection, command):
    output = run(command)
    connection.sendall(b''.join(pack(output)) + output)
serve(answer)
";

struct Server {
    running: Running,
    address: String,
}

impl Server {
    fn start(home: &Home, program: &str) -> Self {
        let script = home.write("server.py", format!("{BLOCKING}{program}"));
        let mut running = Run::new("python3", [script]).spawn();
        let port = running.line().expect("it says its port");
        Self { running, address: format!("127.0.0.1:{port}") }
    }

    /// It has met the end of its connection in its loop.
    fn ended(mut self) {
        assert_eq!(self.running.line().as_deref(), Some("ended"));
        assert!(self.running.wait().status.success());
    }
}

fn one_command(home: &Home, server: &Server, command: &str) -> Output {
    home.afar(["classic", &server.address, "-c", command]).output()
}

#[test]
fn one_command_is_answered_however_the_answer_is_sent() {
    for program in [THREE_SENDS, BYTE_BY_BYTE, ONE_SEND] {
        let home = Home::new();
        let server = Server::start(&home, program);
        let output = one_command(&home, &server, "echo 'a  b'; echo c >&2");
        assert_eq!(output.success().text(), "a  b\nc\n");
        assert_eq!(output.error_text(), "");
        server.ended();
    }
}

#[test]
fn an_empty_answer_is_an_answer() {
    for program in [THREE_SENDS, BYTE_BY_BYTE, ONE_SEND] {
        let home = Home::new();
        let server = Server::start(&home, program);
        assert_eq!(one_command(&home, &server, "true").success().text(), "");
        server.ended();
    }
}

#[test]
fn lines_of_stdin_are_commands_and_its_end_is_the_end() {
    let home = Home::new();
    let server = Server::start(&home, THREE_SENDS);
    // The protocol can't send nothing, and the last line need not be ended.
    let lines = "echo one\n\n   \ntrue\nprintf two\necho three";
    let run = home.afar(["classic", &server.address]).stdin(lines);
    let output = run.output();
    assert_eq!(output.success().text(), "one\ntwothree\n");
    assert_eq!(output.error_text(), "");
    server.ended();
}

#[test]
fn nothing_to_do_is_no_failure() {
    let home = Home::new();
    let server = Server::start(&home, THREE_SENDS);
    let output = home.afar(["classic", &server.address]).stdin("").output();
    assert_eq!(output.success().text(), "");
    server.ended();
}

#[test]
fn sizes_around_a_read_arrive_whole() {
    let home = Home::new();
    let server = Server::start(&home, THREE_SENDS);
    let (mut commands, mut expected) = (String::new(), String::new());
    for size in [0, 1, 1023, 1024, 1025, 100_000] {
        commands.push_str(&format!("head -c {size} /dev/zero | tr '\\0' x; echo {size} >&2\n"));
        expected.push_str(&format!("{}{size}\n", "x".repeat(size)));
    }
    let output = home.afar(["classic", &server.address]).stdin(commands).output();
    assert_eq!(output.success().text(), expected);
    server.ended();
}

#[test]
fn a_large_answer_is_not_held_in_memory() {
    const BYTES: usize = 512 * 1024 * 1024;
    let program = format!(
        "
def answer(connection, command):
    chunk = bytes(range(256)) * 4096
    header = json.dumps({{'data_size': {BYTES}}}).encode('utf-8')
    connection.sendall(struct.pack('i', len(header)) + header)
    for _ in range({BYTES} // len(chunk)):
        connection.sendall(chunk)
    connection.recv(1)
    connection.sendall(b''.join(pack(b'')))
serve(answer)
"
    );
    let home = Home::new();
    let server = Server::start(&home, &program);
    let run = home.afar(["classic", &server.address]).stdin_from(Source::Piped);
    let mut client = run.stdout_to(Sink::Digest).spawn();
    client.write(b"large\n");
    client.digest_until(u64::try_from(BYTES).unwrap());
    // It waits for the next line now.
    let memory = client.process().memory();
    assert!(memory.peak < 24 * 1024 * 1024, "{memory:?}");
    client.write(b"x\n");
    let output = client.wait();
    let expected = Digest::read(Rounds.take(u64::try_from(BYTES).unwrap()));
    assert_eq!(output.success().digest.as_ref(), Some(&expected));
    server.ended();
}

/// 0 to 255, over and over.
struct Rounds;

impl Read for Rounds {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        // Whole rounds only, so that the next read begins with 0 again.
        let count = buffer.len() / 256 * 256;
        let round: [u8; 256] = std::array::from_fn(|at| u8::try_from(at).unwrap_or(0));
        buffer[..count].chunks_mut(256).for_each(|chunk| chunk.copy_from_slice(&round));
        Ok(count)
    }
}

#[test]
fn a_server_that_goes_away_is_named_with_what_was_missing() {
    let cases = [
        ("b''", "after 0 of 4 bytes of the header's length"),
        ("struct.pack('i', 17)[:3]", "after 3 of 4 bytes of the header's length"),
        ("struct.pack('i', 17)", "after 0 of 17 bytes of the header"),
        ("b''.join(pack(b'hello')) + b'hel'", "after 3 of 5 bytes of the output"),
    ];
    for (sent, says) in cases {
        let home = Home::new();
        let program = format!(
            "
def answer(connection, command):
    connection.sendall({sent})
    connection.shutdown(socket.SHUT_WR)
serve(answer)
"
        );
        let server = Server::start(&home, &program);
        let output = one_command(&home, &server, "x");
        let said = output.expect_code(255).error_text();
        assert!(said.contains(says) && said.lines().count() == 1, "{said}");
        server.ended();
    }
}

#[test]
fn what_is_no_answer_is_refused() {
    let cases = [
        ("b'HTTP/1.1 400 Bad Request\\r\\n\\r\\n'", "another protocol"),
        ("struct.pack('i', -5)", "a header of -5 bytes"),
        ("struct.pack('i', 2**31 - 1)", "a header of 2147483647 bytes"),
        ("headed(b'{}')", "data_size"),
        ("headed(b'{\"data_size\": -1}')", "-1 bytes of output"),
        ("headed(b'{\"data_size\": \"\\x1b[2Jm\"}')", "can't be read"),
        ("b''.join(pack(b'hello')) + b'hello!'", "1 bytes more"),
    ];
    for (sent, says) in cases {
        let home = Home::new();
        let program = format!(
            "
def answer(connection, command):
    connection.sendall({sent})
serve(answer)
"
        );
        let server = Server::start(&home, &program);
        let output = one_command(&home, &server, "x");
        let said = output.expect_code(255).error_text();
        assert!(said.contains(says) && said.lines().count() == 1, "{said}");
        assert!(!said.contains('\x1b'), "{said}");
        drop(server);
    }
}

#[test]
fn nobody_there_and_nothing_to_send_are_errors_of_one_line() {
    let home = Home::new();
    let server = Server::start(&home, THREE_SENDS);
    let output = one_command(&home, &server, "");
    assert!(output.expect_code(255).error_text().contains("empty command"), "{output:?}");
    let address = server.address.clone();
    server.ended();
    let output = home.afar(["classic", &address, "-c", "x"]).output();
    let said = output.expect_code(255).error_text();
    assert!(said.starts_with(&format!("afar: connect: cannot reach {address}: ")), "{said}");
    assert_eq!(said.lines().count(), 1);
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    let home = Home::new();
    let server = Server::start(&home, THREE_SENDS);
    let run = home.afar(["classic", &server.address]).stdin_from(Source::Piped);
    let mut client = run.spawn();
    client.write(b"echo first\n");
    assert_eq!(client.line().as_deref(), Some("first"));
    client.close_stdout();
    client.write(b"echo second\n");
    let output = client.wait();
    assert_eq!(output.signal(), Some(13), "{output:?}");
    assert_eq!(output.error_text(), "");
    server.ended();
}

#[test]
fn a_long_command_is_warned_of_once() {
    let home = Home::new();
    let server = Server::start(
        &home,
        "
def answer(connection, command):
    while not command.endswith('end'):
        command += connection.recv(1024).decode()
    connection.sendall(b''.join(pack(str(len(command)).encode())) + str(len(command)).encode())
serve(answer)
",
    );
    let long = format!("{}end\n", "x".repeat(5000));
    let run = home.afar(["classic", &server.address]).stdin(long.repeat(2));
    let output = run.within(Duration::from_secs(30)).output();
    assert_eq!(output.success().text(), "50035003");
    assert_eq!(output.error_text().matches("5003 bytes").count(), 1, "{output:?}");
    server.ended();
}

#[test]
fn a_person_can_edit_what_was_typed_and_get_it_back() {
    let home = Home::new();
    let server = Server::start(&home, THREE_SENDS);
    let (mut terminal, running) = Terminal::all_of_afar(&home, &["classic", &server.address]);
    terminal.wait_for(">>: ");
    // The cursor goes back over a mistake.
    terminal.type_keys("echo onne\x1b[D\x1b[D\x7f\r");
    terminal.wait_for("\r\n");
    terminal.wait_for("one\r\n");
    terminal.wait_for(">>: ");
    terminal.type_keys("printf 'no line'; echo never\x03");
    terminal.wait_for(">>: ");
    terminal.type_keys("printf 'with''in'\r");
    terminal.wait_for("\r\n");
    terminal.wait_for("within\r\n");
    terminal.wait_for(">>: ");
    // The line before the last one, again.
    terminal.type_keys("\x1b[A\x1b[A\r");
    terminal.wait_for("\r\n");
    terminal.wait_for("one\r\n");
    terminal.wait_for(">>: ");
    terminal.type_keys("\x04");
    running.wait().success();
    server.ended();
    let history = std::fs::read_to_string(home.file("home/state/afar/classic_history")).unwrap();
    assert_eq!(history, "echo one\nprintf 'with''in'\necho one\n");
}

#[test]
fn a_signal_leaves_the_terminal_of_the_classic_prompt_as_it_was() {
    let home = Home::new();
    let server = Server::start(&home, THREE_SENDS);
    let (mut terminal, running) = Terminal::all_of_afar(&home, &["classic", &server.address]);
    terminal.wait_for(">>: ");
    assert!(!terminal.shows_what_is_typed());
    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.wait().signal(), Some(15));
    assert!(terminal.shows_what_is_typed());
    // And Ctrl-C ends it while a command runs.
    let server = Server::start(&home, THREE_SENDS);
    let (mut terminal, running) = Terminal::all_of_afar(&home, &["classic", &server.address]);
    terminal.wait_for(">>: ");
    terminal.type_keys("sleep 2; echo done\r");
    terminal.wait_for("\r\n");
    while !terminal.shows_what_is_typed() {
        std::thread::yield_now();
    }
    terminal.type_keys("\x03");
    assert_eq!(running.wait().signal(), Some(2));
}

#[test]
fn a_person_gets_a_prompt() {
    let home = Home::new();
    let server = Server::start(&home, THREE_SENDS);
    let (mut terminal, mut client) = Terminal::afar(&home, &["classic", &server.address]);
    client.wait_for_stderr(">>: ");
    terminal.type_line("printf typed");
    assert_eq!(client.read(5), b"typed");
    // Output that ends within a line does not share it with the prompt.
    client.wait_for_stderr(">>: \n>>: ");
    terminal.type_line("");
    client.wait_for_stderr(">>: \n>>: >>: ");
    terminal.type_line("\u{4}");
    let output = client.wait();
    assert_eq!(output.success().text(), "typed");
    server.ended();
}
