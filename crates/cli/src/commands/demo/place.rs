//! The directory of a demonstration: throwaway keys, and everything that the server keeps.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use afar_core::key::PublicKeyBlob;
use afar_core::known_hosts::{format_line, host_and_port};
use afar_core::limits::AUTHORIZED_KEYS_BYTES_MAX;
use afar_net::files::read_checked;
use afar_net::host_key::{HostKey, HostPublicKey};
use afar_sys::users::effective_uid;
use tempfile::TempDir;

use super::server::Server;

/// A private directory with fresh keys; dropping it removes it.
#[derive(Debug)]
pub(super) struct Place {
    directory: TempDir,
    host_key: HostPublicKey,
    user_key: HostPublicKey,
}

impl Place {
    /// Makes the directory where the server will accept an `authorized_keys` of it: as sshd, it
    /// takes none from below a directory that others may write to, which rules `/tmp` out.
    pub(super) fn create(home: &Path) -> Result<Self, String> {
        let mut problem = "there is no directory for its keys".to_owned();
        for base in bases(home) {
            match Self::create_in(&base, home) {
                Ok(place) => return Ok(place),
                Err(error) => problem = format!("{}: {error}", base.display()),
            }
        }
        Err(problem)
    }

    fn create_in(base: &Path, home: &Path) -> Result<Self, String> {
        let mode = std::fs::Permissions::from_mode(0o700);
        let directory = tempfile::Builder::new()
            .prefix(".afar-demo-")
            .permissions(mode)
            .tempdir_in(base)
            .map_err(text)?;
        let (host_key, _) =
            HostKey::load_or_create(&directory.path().join("host_key")).map_err(text)?;
        // A key is a key: the file that a host keeps is the file that a user keeps.
        let (user_key, _) =
            HostKey::load_or_create(&directory.path().join("user_key")).map_err(text)?;
        let place = Self {
            host_key: host_key.public().clone(),
            user_key: user_key.public().clone(),
            directory,
        };
        for name in ["run", "state", "config"] {
            std::fs::create_dir(place.path(name)).map_err(text)?;
            let mode = std::fs::Permissions::from_mode(0o700);
            std::fs::set_permissions(place.path(name), mode).map_err(text)?;
        }
        let line = format!("{} afar demo\n", wire(&place.user_key)?.to_fields());
        place.write("authorized_keys", &line)?;
        let path = place.path("authorized_keys");
        let bytes_max = AUTHORIZED_KEYS_BYTES_MAX as u64;
        read_checked(&path, Some(home), effective_uid(), bytes_max).map_err(text)?;
        Ok(place)
    }

    /// Makes the server's key known to the client.
    pub(super) fn trust(&self, server: &Server) -> Result<(), String> {
        let address = server.address();
        let name = host_and_port(&address.ip().to_string(), address.port());
        let line = format_line(&name, &wire(&self.host_key)?).map_err(text)?;
        self.write("known_hosts", &line)
    }

    /// A file or directory of it.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn user_key(&self) -> PathBuf {
        self.path("user_key")
    }

    pub(super) fn known_hosts(&self) -> PathBuf {
        self.path("known_hosts")
    }

    pub(super) fn host_key_fingerprint(&self) -> String {
        self.host_key.fingerprint()
    }

    pub(super) fn user_key_fingerprint(&self) -> String {
        self.user_key.fingerprint()
    }

    fn write(&self, name: &str, content: &str) -> Result<(), String> {
        let path = self.path(name);
        std::fs::write(&path, content).map_err(text)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(text)
    }
}

fn wire(key: &HostPublicKey) -> Result<PublicKeyBlob, String> {
    PublicKeyBlob::from_wire(key.blob().to_vec()).map_err(text)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Where it may be, best first: what is gone with the login session, then below the home.
fn bases(home: &Path) -> Vec<PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let runtime = runtime.filter(|path| path.is_absolute());
    runtime.into_iter().chain([home.join(".cache"), home.to_owned()]).collect()
}
