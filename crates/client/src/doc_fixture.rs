// What the example in the crate's documentation runs against: a real supervisor, which is this same
// program started once more, in a directory of its own. Included by the example and by nothing else.

type Failure = Box<dyn std::error::Error>;

fn supervised<F>(example: impl FnOnce(fn() -> Result<std::os::unix::net::UnixStream, String>) -> F)
where
    F: Future<Output = Result<(), Failure>>,
{
    const INNER: &str = "AFAR_DOC_EXAMPLE";
    let this = std::env::current_exe().unwrap();
    if std::env::args().nth(1).as_deref() == Some("supervisor") {
        let idle_exit = std::time::Duration::from_millis(100);
        let log = afar_server::log::Log::default();
        let config = afar_server::supervisor::SupervisorConfig { idle_exit, log };
        return afar_server::supervisor::run(config).unwrap();
    }
    if std::env::var_os(INNER).is_none() {
        let directory = tempfile::tempdir().unwrap();
        let status = std::process::Command::new(this)
            .env(INNER, "1")
            .env("XDG_RUNTIME_DIR", directory.path().join("run"))
            .env("XDG_STATE_HOME", directory.path().join("state"))
            .status();
        assert!(status.unwrap().success());
        return;
    }
    let launch = || {
        let this = std::env::current_exe().unwrap();
        let launched = afar_server::launch::connect(&this).map_err(|error| error.to_string())?;
        Ok(launched.stream)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(example(launch)).unwrap();
}
