//! How a connection to a target is made, the first one and every other.

use std::sync::Arc;

use afar_core::policy::Grant;
use afar_core::target::{Destination, Target};
use afar_net::clock::Clock;
use afar_net::driver::Driver;
use afar_net::host_key::HostPublicKey;
use afar_net::local::attach_local;
use afar_net::transport::AnyTransport;
use afar_proto::message::OpenSpec;
use afar_proto::{Config, Connection, Role};
use tokio::time::Instant;

use super::{Connector, off_the_runtime};
use crate::client::{Client, Options};
use crate::dispatcher::{Connecting, Reconnector};
use crate::error::Error;
use crate::route::{self, Route};
use crate::session::Pipelined;
use crate::ssh;

/// How a connection to the target is made, the first one and every other.
#[derive(Clone)]
pub(super) enum Way {
    Local,
    Ssh { destination: Destination, name: String },
    Host(Arc<Route>),
}

/// Why there is no connection, and when a request may have left for one.
pub(super) struct Failed {
    pub(super) error: Error,
    pub(super) sent_at: Option<Instant>,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, sent_at: None }
    }
}

pub(super) type Connected = (Driver<AnyTransport>, Option<Pipelined>);

impl Way {
    pub(super) fn find(client: &Client, target: &Target) -> Result<Self, Error> {
        Ok(match target {
            Target::Local => Self::Local,
            Target::Ssh(destination) => {
                Self::Ssh { destination: destination.clone(), name: target.to_string() }
            }
            _ => Self::Host(Arc::new(Route::find(&client.options, target)?)),
        })
    }

    /// The target as it was asked for.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Local => "local",
            Self::Ssh { name, .. } => name,
            Self::Host(route) => &route.target,
        }
    }

    /// Connects. `proved` is the host's key of an earlier connection, and then of this one.
    pub(super) async fn connect(
        &self,
        client: &Client,
        spec: Option<OpenSpec>,
        proved: &mut Option<HostPublicKey>,
    ) -> Result<Connected, Failed> {
        match self {
            Self::Local => Ok(connect_local(&client.options, spec).await?),
            Self::Ssh { destination, .. } => {
                Ok(ssh::connect(&client.options, destination, spec).await?)
            }
            Self::Host(route) => {
                let mut connector = Connector::new(client, route, spec);
                connector.proved = proved.take();
                let result = connector.establish().await;
                let Connector { sent_at, proved: key, .. } = connector;
                *proved = key;
                result.map_err(|error| Failed { error, sent_at })
            }
        }
    }
}

/// What makes the connection again, if that is wanted.
pub(super) fn reconnector(
    client: &Client,
    way: Way,
    proved: Option<HostPublicKey>,
) -> Option<Reconnector> {
    let limit = client.options.reconnect_for;
    let client = client.unattended();
    let connect = move || -> Connecting {
        let (client, way, mut proved) = (client.clone(), way.clone(), proved.clone());
        Box::pin(async move {
            let connected = way.connect(&client, None, &mut proved).await;
            connected.map(|(driver, _)| Box::new(driver)).map_err(|failed| failed.error)
        })
    };
    (!limit.is_zero()).then(|| Reconnector { connect: Box::new(connect), limit })
}

async fn connect_local(options: &Options, spec: Option<OpenSpec>) -> Result<Connected, Error> {
    let launcher = Arc::clone(options.launcher.as_ref().ok_or(Error::NoLauncher)?);
    let stream = off_the_runtime(move || launcher()).await?.map_err(Error::Local)?;
    let io_error = |error: std::io::Error| Error::Local(error.to_string());
    stream.set_nonblocking(true).map_err(io_error)?;
    let stream = tokio::net::UnixStream::from_std(stream).map_err(io_error)?;
    let user = route::local_user(options)?;
    let grant = Grant::local(user.as_str(), rustix::process::geteuid().as_raw());
    let clock = Clock::new();
    let mut connection = Connection::new(Role::Client, Config::default(), clock.now());
    let pipelined = spec.map(|spec| open(&mut connection, spec)).transpose()?;
    Ok((attach_local(stream, &grant, connection, clock), pipelined))
}

/// Opens the channel of a command that is asked for at once.
pub(crate) fn open(connection: &mut Connection, spec: OpenSpec) -> Result<Pipelined, Error> {
    let channel = connection.open(&spec)?;
    Ok(Pipelined { channel, spec, sent_at: Instant::now() })
}
