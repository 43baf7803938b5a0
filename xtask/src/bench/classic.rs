//! The classic protocol's side of a run: a blocking server and a client as its scripts are, in Python.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

use super::rig::program;
use crate::failure::{Failure, Result};

/// One client after the other, one `recv` and one shell a command, three sends an answer.
const SERVER: &str = "\
import json, socket, struct, subprocess, sys
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(('127.0.0.1', int(sys.argv[1])))
server.listen(5)
while True:
    connection, _ = server.accept()
    while True:
        command = connection.recv(1024)
        if not command:
            break
        job = subprocess.Popen(command.decode('utf-8'), shell=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        output = job.stdout.read() + job.stderr.read()
        job.wait()
        header = json.dumps({'data_size': len(output)}).encode('utf-8')
        connection.send(struct.pack('i', len(header)))
        connection.send(header)
        connection.sendall(output)
    connection.close()
";

/// Sends the same command again and again, and checks every answer.
const CLIENT: &str = "\
import json, socket, struct, sys, time
client = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
count = int(sys.argv[2])
def ask():
    client.send(b'echo x')
    header = client.recv(struct.unpack('i', client.recv(4, socket.MSG_WAITALL))[0], socket.MSG_WAITALL)
    output = client.recv(json.loads(header)['data_size'], socket.MSG_WAITALL)
    assert output == b'x\\n', output
ask()
started = time.monotonic()
for _ in range(count):
    ask()
print('commands_per_s', count / (time.monotonic() - started))
";

/// Writes the scripts to where [`server`] and [`client`] find them.
pub(super) fn prepare(directory: &Path) -> Result<()> {
    for (name, text) in [("classic_server.py", SERVER), ("classic_client.py", CLIENT)] {
        fs::write(directory.join(name), text).map_err(Failure::io(format!("write {name}")))?;
    }
    Ok(())
}

/// The server, to listen at this port.
pub(super) fn server(directory: &Path, port: u16) -> Result<Command> {
    let mut command = Command::new(program("python3")?);
    command.arg(directory.join("classic_server.py")).arg(port.to_string());
    Ok(command)
}

/// Whether the server listens.
pub(super) fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

/// The client, for so many commands to the server at this port; says `commands_per_s NUMBER`.
pub(super) fn client(directory: &Path, port: u16, count: u64) -> Result<Command> {
    let mut command = Command::new(program("python3")?);
    command
        .arg(directory.join("classic_client.py"))
        .args([port.to_string(), count.to_string()])
        .stdin(Stdio::null());
    Ok(command)
}
