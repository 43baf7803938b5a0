//! `afar repl`: a prompt at a terminal, and lines from elsewhere.
#![cfg(test)]

use afar_e2e::{Host, Run, Running, Terminal};

/// `afar repl OPTIONS TARGET`.
fn repl(host: &Host, options: &[&str]) -> Run {
    let run = host.afar(["repl"]);
    let run = host.client_options().into_iter().fold(run, Run::arg);
    options.iter().fold(run, Run::arg).arg(host.target())
}

/// The same at a terminal.
fn at_a_terminal(host: &Host) -> (Terminal, Running) {
    let mut words: Vec<String> = vec!["repl".into()];
    words.extend(host.client_options().iter().map(|word| word.to_str().unwrap().to_owned()));
    words.push(host.target());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (mut terminal, running) = Terminal::all_of_afar(host, &words);
    terminal.wait_for("> ");
    (terminal, running)
}

/// Enters a line and waits for what it shows.
#[track_caller]
fn enter(terminal: &mut Terminal, line: &str, shows: &str) {
    terminal.type_keys(&format!("{line}\r"));
    // The echo of the line comes first, and never ends it.
    terminal.wait_for("\r\n");
    terminal.wait_for(shows);
}

#[test]
fn lines_of_a_file_run_one_after_the_other_in_one_shell() {
    let host = Host::start();
    let lines = "cd /usr\nv=1\npwd; echo $v >&2\n\nfor i in a b\ndo echo $i\ndone\n\
                 cat <<EOF\nit's\nEOF\ncat\n(exit 7)\necho last: $?; (exit 3)";
    let output = repl(&host, &[]).stdin(lines).output();
    assert_eq!(output.expect_code(3).text(), "/usr\na\nb\nit's\nlast: 7\n");
    assert_eq!(output.error_text(), "1\n");
    // What is not finished at the end is the shell's to complain about.
    let output = repl(&host, &[]).stdin("echo 'open").output();
    assert!(matches!(output.code(), 1 | 2) && !output.error_text().is_empty(), "{output:?}");
    // Nothing at all is no failure.
    repl(&host, &[]).stdin("").output().success();
}

#[test]
fn a_prompt_has_a_shell_of_its_own_unless_a_session_is_named() {
    let host = Host::start();
    repl(&host, &[]).stdin("v=1").output().success();
    assert_eq!(repl(&host, &[]).stdin("echo [$v]").output().success().text(), "[]\n");
    repl(&host, &["--session", "s"]).stdin("v=1").output().success();
    let output = host.run(["--session", "s", "-c", "echo [$v]"]).output();
    assert_eq!(output.success().text(), "[1]\n");
    let output = repl(&host, &["-e", "A=b c"]).stdin("echo $A").output();
    assert_eq!(output.success().text(), "b c\n");
}

#[test]
fn the_end_of_the_shell_is_not_that_of_the_prompt() {
    let host = Host::start();
    let output = repl(&host, &[]).stdin("v=1\nexit 4\necho [$v]").output();
    assert_eq!(output.success().text(), "[]\n");
    assert!(output.error_text().contains("shell has ended"), "{output:?}");
    let output = repl(&host, &["--timeout", "100ms"]).stdin("sleep 300\n").output();
    output.expect_code(124);
}

#[test]
fn a_set_of_hosts_is_refused() {
    let host = Host::start();
    let output = host.afar(["repl", "web[1-3]"]).output();
    assert!(output.expect_code(255).error_text().contains("several hosts"), "{output:?}");
}

#[test]
fn a_terminal_shows_status_and_time_and_takes_commands_of_its_own() {
    let host = Host::start();
    let (mut terminal, running) = at_a_terminal(&host);
    enter(&mut terminal, "cd /usr; v=one", "[0 in ");
    enter(&mut terminal, "echo $v $PWD; (exit 3)", "one /usr");
    terminal.wait_for("[3 in ");
    enter(&mut terminal, ":help", ":timing");
    terminal.wait_for("> ");
    // A line that goes on.
    enter(&mut terminal, "echo 'a", "  ");
    enter(&mut terminal, "b'", "a\r\nb\r\n");
    terminal.wait_for("[0 in ");
    enter(&mut terminal, ":bogus", "there is no :bogus");
    terminal.wait_for("> ");
    enter(&mut terminal, "sh -c 'exit 5'", "[5 in ");
    terminal.wait_for("> ");
    terminal.type_keys("\x04");
    running.wait().expect_code(5);
    let history = std::fs::read_to_string(host.file("home/state/afar/repl_history")).unwrap();
    assert!(history.starts_with("cd /usr; v=one\n"), "{history}");
}

#[test]
fn ctrl_c_interrupts_the_command_and_not_the_prompt() {
    let host = Host::start();
    let (mut terminal, running) = at_a_terminal(&host);
    enter(&mut terminal, "v=1", "[0 in ");
    enter(&mut terminal, "sh -c 'echo u''p; exec sleep 300'", "up");
    terminal.type_keys("\x03");
    terminal.wait_for("[130 in ");
    enter(&mut terminal, "echo [$v]", "[1]");
    // A line that is given up, and one that is ended by name.
    terminal.wait_for("> ");
    terminal.type_keys("echo nev''er\x03");
    terminal.wait_for("> ");
    enter(&mut terminal, "echo u''p; sleep 300", "up");
    terminal.type_keys("echo ahe''ad\n:cancel\n");
    terminal.wait_for("cancelled");
    terminal.wait_for("ahead");
    terminal.wait_for("> ");
    enter(&mut terminal, "echo [$v]", "[]");
    terminal.wait_for("> ");
    terminal.type_keys("\x04");
    running.wait().success();
}

#[test]
fn the_prompt_says_where_the_shell_is() {
    let host = Host::start();
    let (mut terminal, running) = at_a_terminal(&host);
    enter(&mut terminal, "cd /usr/lib", ":/usr/lib> ");
    // However it got there.
    enter(&mut terminal, "f() { cd \"$1\"; }; f ..", ":/usr> ");
    let directory = host.file("a\x1b[31mb");
    std::fs::create_dir(&directory).unwrap();
    enter(&mut terminal, &format!("cd '{}'/a*b", host.file("").display()), "\\x1b[31mb> ");
    enter(&mut terminal, "cd", ":~> ");
    enter(&mut terminal, "cd /; exit 3", "[3 in ");
    terminal.wait_for(":~> ");
    terminal.type_keys("\x04");
    running.wait().expect_code(3);
}

#[test]
fn commands_there_are_completed_where_a_command_stands() {
    let host = Host::start();
    let (mut terminal, running) = at_a_terminal(&host);
    enter(&mut terminal, "cd /usr", ":/usr> ");
    terminal.type_keys("true | b2su\t");
    terminal.wait_for("b2sum ");
    terminal.type_keys("/dev/nul\t");
    terminal.wait_for("/dev/null");
    enter(&mut terminal, "", "786a02f742015903c6c6fd852552d272");
    terminal.wait_for("> ");
    // As an argument it is a path, and there is none.
    terminal.type_keys("echo b2su\t.");
    terminal.wait_for("b2su.");
    // The first closes the list, in which nothing was found.
    terminal.type_keys("\r\r");
    terminal.wait_for("b2su.\r\n");
    terminal.wait_for(":/usr> ");
    terminal.type_keys("\x04");
    running.wait().success();
}

#[test]
fn paths_there_are_completed() {
    let host = Host::start();
    let directory = host.file("zz dir");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("only one"), "seen\n").unwrap();
    let (mut terminal, running) = at_a_terminal(&host);
    enter(&mut terminal, &format!("cd '{}'", directory.parent().unwrap().display()), "[0 in ");
    terminal.wait_for("> ");
    terminal.type_keys("cat zz\t");
    terminal.wait_for("zz\\ dir/");
    terminal.type_keys("o\t");
    terminal.wait_for("only\\ one");
    enter(&mut terminal, "", "seen");
    terminal.wait_for("> ");
    terminal.type_keys("\x04");
    running.wait().success();
}
