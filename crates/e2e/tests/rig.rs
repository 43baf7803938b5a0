//! The rig itself: what it starts does what it says, and what is left behind is found.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use afar_e2e::{Direction, Home, Process, Proxy, Run, Sshd};
use rustix::process::Signal;

#[test]
fn what_a_program_leaves_behind_is_waited_for() {
    let script = "sh -c 'echo $$; exec sleep 300' & wait";
    let mut run = Run::new("sh", ["-c", script]).reaped().spawn();
    let sleeper = Process::open(run.line().unwrap().parse().unwrap()).unwrap();
    // The shell ends; its child is orphaned, adopted, and found.
    run.process().kill();
    assert!(sleeper.is_running());
    sleeper.kill();
    assert_eq!(run.wait().code(), 128 + Signal::KILL.as_raw());
}

#[test]
fn a_real_sshd_answers() {
    let sshd = Sshd::start();
    let output = sshd.run("printf '%s\\n' \"$HOME\"; exit 7");
    assert_eq!(output.expect_code(7).stdout.last(), Some(&b'\n'), "{}", sshd.log());
}

#[test]
fn a_proxy_passes_stalls_and_cuts() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap());
    proxy.limit_pieces(1);
    let mut client = TcpStream::connect(proxy.address()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    client.write_all(b"abc").unwrap();
    let mut three = [0; 3];
    server.read_exact(&mut three).unwrap();
    assert_eq!(&three, b"abc");
    proxy.wait_for(Direction::Up, 3);
    proxy.stall(Direction::Down);
    server.write_all(b"d").unwrap();
    assert_eq!(proxy.passed(Direction::Down), 0);
    proxy.resume(Direction::Down);
    client.read_exact(&mut three[..1]).unwrap();
    proxy.cut();
    assert!(matches!(client.read(&mut three), Ok(0) | Err(_)));
}

#[test]
fn a_home_has_a_key_that_afar_would_find() {
    let home = Home::new();
    assert!(Home::public_line(&home.key()).starts_with("ssh-ed25519 "));
    let files = [home.file("home"), home.file("home/.ssh"), home.key()];
    let modes = home.program("stat", ["-c", "%a"].map(Into::into).into_iter().chain(files));
    assert_eq!(modes.output().success().text(), "700\n700\n600\n");
}
