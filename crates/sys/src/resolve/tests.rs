//! Tests of the search for programs and the diagnosis of failures.

use super::*;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use tempfile::TempDir;

fn write(directory: &TempDir, name: &str, content: &str, mode: u32) -> PathBuf {
    let path = directory.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    path
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

#[test]
fn a_name_without_a_slash_is_searched_in_the_given_path_only() {
    let directory = TempDir::new().unwrap();
    let program = write(&directory, "bin/tool", "#!/bin/sh\n", 0o755);
    let path = [b"/nonexistent:", bytes(program.parent().unwrap())].concat();
    assert_eq!(resolve(b"tool", Some(&path), Path::new("/")), Ok(program));
    assert_eq!(
        resolve(b"tool", Some(b"/nonexistent"), Path::new("/")),
        Err(SpawnFailure::NotFound { program: "tool".into() })
    );
}

#[test]
fn without_a_path_the_default_is_searched() {
    let found = resolve(b"sh", None, Path::new("/")).unwrap();
    assert_eq!(found, Path::new("/bin/sh"));
}

#[test]
fn empty_and_relative_entries_are_relative_to_the_childs_directory() {
    let directory = TempDir::new().unwrap();
    let here = write(&directory, "tool", "#!/bin/sh\n", 0o755);
    let below = write(&directory, "bin/other", "#!/bin/sh\n", 0o755);
    for path in [&b""[..], b":/bin", b"/nonexistent:", b"."] {
        let found = resolve(b"tool", Some(path), directory.path()).unwrap();
        assert_eq!(found.canonicalize().unwrap(), here.canonicalize().unwrap(), "{path:?}");
    }
    assert_eq!(resolve(b"other", Some(b"bin"), directory.path()), Ok(below));
}

#[test]
fn a_name_with_a_slash_is_relative_to_the_childs_directory() {
    let directory = TempDir::new().unwrap();
    let program = write(&directory, "bin/tool", "#!/bin/sh\n", 0o755);
    assert_eq!(resolve(b"bin/tool", Some(b"/bin"), directory.path()), Ok(program.clone()));
    assert_eq!(resolve(bytes(&program), None, Path::new("/")), Ok(program));
}

#[test]
fn fault_48_a_file_that_is_not_executable_does_not_end_the_search() {
    let directory = TempDir::new().unwrap();
    let refused = write(&directory, "a/tool", "#!/bin/sh\n", 0o644);
    let good = write(&directory, "b/tool", "#!/bin/sh\n", 0o755);
    assert_eq!(resolve(b"tool", Some(b"a:b"), directory.path()), Ok(good));
    assert_eq!(
        resolve(b"tool", Some(b"a:c"), directory.path()),
        Err(SpawnFailure::NotExecutable { program: refused })
    );
}

#[test]
fn fault_48_a_directory_is_named_as_one() {
    let directory = TempDir::new().unwrap();
    fs::create_dir_all(directory.path().join("bin/tool")).unwrap();
    let program = directory.path().join("bin/tool");
    let failure = Err(SpawnFailure::IsDirectory { program });
    assert_eq!(resolve(b"bin/tool", None, directory.path()), failure);
    assert_eq!(resolve(b"tool", Some(b"bin"), directory.path()), failure);
}

#[test]
fn fault_48_what_is_no_regular_file_is_not_executable() {
    let program = PathBuf::from("/dev/null");
    assert_eq!(
        resolve(b"/dev/null", None, Path::new("/")),
        Err(SpawnFailure::NotExecutable { program })
    );
}

#[test]
fn odd_names_are_refused_without_a_search() {
    assert_eq!(
        resolve(b"", Some(b"/bin"), Path::new("/")),
        Err(SpawnFailure::NotFound { program: PathBuf::new() })
    );
    assert_eq!(
        resolve(b"a\0b", Some(b"/bin"), Path::new("/")),
        Err(SpawnFailure::Other(Errno::INVAL))
    );
    assert_eq!(
        resolve(&[b'x'; 300], Some(b"/bin"), Path::new("/")),
        Err(SpawnFailure::Other(Errno::NAMETOOLONG))
    );
}

#[test]
fn a_missing_directory_is_blamed_before_the_program() {
    let directory = TempDir::new().unwrap();
    let cwd = directory.path().join("gone");
    let missing = SpawnFailure::MissingCwd { cwd: cwd.clone() };
    assert_eq!(resolve(b"./tool", None, &cwd), Err(missing.clone()));
    assert_eq!(resolve(b"tool", Some(b"."), &cwd), Err(missing.clone()));
    // Found without the directory; the spawn itself will fail, and the diagnosis says why.
    assert_eq!(resolve(b"sh", Some(b"/bin"), &cwd), Ok("/bin/sh".into()));
    assert_eq!(diagnose(Errno::NOENT, Path::new("/bin/sh"), &cwd), missing);

    let file = write(&directory, "file", "", 0o644);
    let no_directory = SpawnFailure::CwdNotDirectory { cwd: file.clone() };
    assert_eq!(diagnose(Errno::NOTDIR, Path::new("/bin/sh"), &file), no_directory);
}

#[test]
fn a_missing_interpreter_is_named() {
    let directory = TempDir::new().unwrap();
    let script = write(&directory, "script", "#! /no/such/shell -x\necho\n", 0o755);
    assert_eq!(
        diagnose(Errno::NOENT, &script, Path::new("/")),
        SpawnFailure::BadInterpreter {
            program: script.clone(),
            interpreter: "/no/such/shell".into()
        }
    );
    let outer = write(&directory, "outer", &format!("#!{}\n", script.display()), 0o755);
    assert_eq!(
        diagnose(Errno::NOENT, &outer, Path::new("/")),
        SpawnFailure::BadInterpreter { program: outer, interpreter: "/no/such/shell".into() }
    );
}

#[test]
fn an_error_that_nothing_explains_is_kept() {
    assert_eq!(
        diagnose(Errno::NOENT, Path::new("/bin/sh"), Path::new("/")),
        SpawnFailure::Other(Errno::NOENT)
    );
    assert_eq!(
        diagnose(Errno::TXTBSY, Path::new("/bin/sh"), Path::new("/")),
        SpawnFailure::Other(Errno::TXTBSY)
    );
}

#[test]
fn messages_never_pass_on_control_characters() {
    let failure = SpawnFailure::NotFound { program: "\u{1b}[2J".into() };
    assert!(!failure.to_string().contains('\u{1b}'), "{failure}");
}
