//! Coming back when nobody is there to be asked (`J-4.1`).

use afar_net::agent::AgentError;

use super::*;

/// As `afar run` asks for one.
const WHERE_NEEDED: Duration = Duration::from_secs(3600);

/// A client that has logged in by the locked key, and how often a person was asked.
async fn unlocked(world: &World) -> (Client, PathBuf, Arc<Mutex<Vec<String>>>) {
    let path = world.locked_key();
    world.allow(afar_net::identity::load(&path).unwrap().public_blob());
    let (prompt, asked) = scripted(world, Answer::No, &["secret"]);
    let builder = world.known().builder(&[&path]).delegate_where_needed(WHERE_NEEDED);
    let client = builder.prompt(prompt).build();
    world.connect(&client).await.unwrap();
    (client, path, asked)
}

/// A listener that was started anew remembers nothing, and an ephemeral key does not last for ever.
#[tokio::test]
async fn a_passphrase_is_asked_for_once_whatever_the_listener_has_forgotten() {
    let world = World::new().await;
    let (client, path, asked) = unlocked(&world).await;
    // The key itself is there, so nobody has to vouch for another.
    assert!(world.door.delegated.lock().unwrap().is_empty());
    let again = client.unattended();
    world.connect(&again).await.unwrap();
    world.connect(&client).await.unwrap();
    // Nor does its file have to be there any more.
    std::fs::remove_file(&path).unwrap();
    world.connect(&again).await.unwrap();
    assert_eq!(asked.lock().unwrap().len(), 1);
    let attempts = world.door.attempts.lock().unwrap().clone();
    assert!(attempts.iter().all(|key| *key == attempts[0]), "{attempts:?}");
    // Another client has to ask.
    world.locked_key();
    let other = world.builder(&[&path]).build();
    assert!(matches!(world.connect(&other.unattended()).await, Err(Error::NeedsPerson { .. })));
    assert!(matches!(world.connect(&other).await, Err(Error::Unlock(_))));
}

#[tokio::test]
async fn a_kept_key_that_is_refused_gives_way_to_the_others() {
    let world = World::new().await;
    let first = world.key("first", true);
    let client = world.known().builder(&[&first]).build();
    world.connect(&client).await.unwrap();
    world.door.allowed.lock().unwrap().clear();
    let error = world.connect(&client.unattended()).await.unwrap_err();
    assert!(matches!(error, Error::KeysRefused { .. }), "{error}");
    // Its file holds another one by now.
    std::fs::remove_file(&first).unwrap();
    world.key("first", true);
    world.connect(&client.unattended()).await.unwrap();
}

#[tokio::test]
async fn an_agent_that_is_away_may_come_back_and_a_person_does_not() {
    let world = World::new().await;
    let path = world.locked_key();
    let (home, socket) = (world.path(""), world.path("agent"));
    let mut builder = world.known().builder(&[&path]).agent(true);
    builder.options.variable = Arc::new(move |name| match name.to_str() {
        Some("HOME") => Some(home.clone().into()),
        Some("SSH_AUTH_SOCK") => Some(socket.clone().into()),
        _ => None,
    });
    let client = builder.build().unattended();
    let error = world.connect(&client).await.unwrap_err();
    let away = |error: &Error| {
        matches!(error, Error::Sign(SignError::Agent(AgentError::Unreachable { .. })))
    };
    assert!(away(&error), "{error}");
    let error = world.connect(&world.builder(&[&path]).build().unattended()).await.unwrap_err();
    assert!(matches!(error, Error::NeedsPerson { .. }), "{error}");
}
