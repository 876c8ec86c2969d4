//! Identities and the files they live in.

use std::path::Path;

use fairlead_wire::msg::Role;

use super::Folder;
use crate::{ANY_NAME, Authority, Certs, Identity, IdentityError, Peer, write_certs};

#[test]
fn names_that_a_uri_cannot_carry_are_refused() {
    let long = "x".repeat(129);
    for name in ["", "a/b", "a b", "ü", "a%", "*x", "a\n", long.as_str()] {
        assert!(matches!(Authority::new(name), Err(IdentityError::Name { .. })), "{name:?}");
        let authority = Authority::new("c").unwrap();
        assert!(matches!(authority.issue(Role::Agent, name), Err(IdentityError::Name { .. })), "{name:?}");
    }
    assert!(matches!(Authority::new(ANY_NAME), Err(IdentityError::Name { .. })), "a cluster is one cluster");
}

#[test]
fn the_certificate_names_cluster_role_and_name() {
    let authority = Authority::new("prod.eu-1").unwrap();
    for (role, name) in [
        (Role::Scheduler, "s"),
        (Role::Gateway, "gw_1"),
        (Role::Agent, "127.0.0.1:8000"),
        (Role::Agent, ANY_NAME),
    ] {
        let identity = authority.issue(role, name).unwrap();
        let read = Peer::from_certificate(&identity.chain()[0]).unwrap();
        assert_eq!(read, Peer { cluster: "prod.eu-1".into(), role, name: name.into() });
        assert_eq!(identity.peer(), &read);
    }
}

#[test]
fn bytes_that_are_no_certificate_are_an_error() {
    let authority = Authority::new("c").unwrap();
    let good = authority.issue(Role::Agent, "a").unwrap().chain()[0].to_vec();
    for cut in (0..good.len()).step_by(7) {
        assert!(Peer::from_certificate(&good[..cut]).is_err(), "cut at {cut}");
    }
    assert!(Peer::from_certificate(&[0xff; 300]).is_err());
}

#[test]
fn a_name_binds_unless_it_is_any() {
    let peer = |name: &str| Peer { cluster: "c".into(), role: Role::Agent, name: name.into() };
    assert!(peer("a").may_be_called("a"));
    assert!(!peer("a").may_be_called("b"));
    assert!(!peer("a").may_be_called(ANY_NAME));
    assert!(peer(ANY_NAME).may_be_called("b"));
}

#[test]
fn an_identity_survives_its_folder() {
    let folder = Folder::new();
    let identity = Authority::new("c").unwrap().issue(Role::Scheduler, "s").unwrap();
    identity.save(&folder.0).unwrap();
    let read = Identity::load(&folder.0).unwrap();
    assert_eq!(read.peer(), identity.peer());
    assert_eq!(read.chain(), identity.chain());
    assert_eq!(read.cluster_seed(), identity.cluster_seed());
    assert_eq!(read.authority(), identity.authority());
}

#[cfg(unix)]
#[test]
fn secrets_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    write_certs(&folder.0, &Certs::default()).unwrap();
    let mode = |file: &str| std::fs::metadata(folder.0.join(file)).unwrap().permissions().mode() & 0o777;
    for secret in
        ["ca-key.pem", "cluster.seed", "scheduler/key.pem", "scheduler/cluster.seed", "agent/key.pem"]
    {
        assert_eq!(mode(secret), 0o600, "{secret}");
    }
    assert!(!folder.0.join("agent/cluster.seed").exists(), "only the scheduler keeps the seed");
    assert!(!folder.0.join("agent/ca-key.pem").exists());
}

#[test]
fn the_seed_belongs_to_the_cluster_and_has_a_stable_substitute() {
    let authority = Authority::new("c").unwrap();
    let (one, two) =
        (authority.issue(Role::Scheduler, "1").unwrap(), authority.issue(Role::Scheduler, "2").unwrap());
    assert_eq!(one.cluster_seed(), two.cluster_seed());
    assert_ne!(
        one.cluster_seed(),
        Authority::new("c").unwrap().issue(Role::Scheduler, "1").unwrap().cluster_seed()
    );

    let folder = Folder::new();
    one.save(&folder.0).unwrap();
    std::fs::remove_file(folder.0.join("cluster.seed")).unwrap();
    let substitute = Identity::load(&folder.0).unwrap().cluster_seed();
    assert_ne!(substitute, one.cluster_seed());
    assert_eq!(substitute, Identity::load(&folder.0).unwrap().cluster_seed());
}

#[test]
fn certs_run_again_keeps_what_is_there_and_adds() {
    let folder = Folder::new();
    let first = write_certs(&folder.0, &Certs::default()).unwrap();
    let names: Vec<_> = first.iter().map(|w| (w.dir.strip_prefix(&folder.0).unwrap(), w.new)).collect();
    assert_eq!(
        names,
        [(Path::new("scheduler"), true), (Path::new("gateway"), true), (Path::new("agent"), true)]
    );
    let seed = Identity::load(folder.0.join("scheduler")).unwrap().cluster_seed();
    let authority = std::fs::read(folder.0.join("ca.pem")).unwrap();
    let key = std::fs::read(folder.0.join("agent/key.pem")).unwrap();

    let more = Certs { agents: vec![ANY_NAME.into(), "10.0.0.1:9".into()], ..Certs::default() };
    let second = write_certs(&folder.0, &more).unwrap();
    assert_eq!(second.iter().filter(|w| w.new).count(), 1);
    assert_eq!(std::fs::read(folder.0.join("ca.pem")).unwrap(), authority);
    assert_eq!(std::fs::read(folder.0.join("agent/key.pem")).unwrap(), key);
    let added = Identity::load(folder.0.join("agent-10.0.0.1_9")).unwrap();
    assert_eq!(added.peer().name, "10.0.0.1:9");
    let scheduler = Certs { schedulers: vec!["second".into()], ..Certs::default() };
    write_certs(&folder.0, &scheduler).unwrap();
    assert_eq!(Identity::load(folder.0.join("scheduler-second")).unwrap().cluster_seed(), seed);

    let clash = Certs { agents: vec!["10.0.0.1_9".into()], ..Certs::default() };
    assert!(write_certs(&folder.0, &clash).is_err(), "another name's folder is not taken over");
}

#[test]
fn a_broken_file_is_named() {
    for (file, content) in [
        ("ca.pem", "no certificate"),
        ("cert.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        ("key.pem", ""),
        ("cluster.seed", "sixteen"),
    ] {
        let folder = Folder::new();
        Authority::new("c").unwrap().issue(Role::Scheduler, "s").unwrap().save(&folder.0).unwrap();
        std::fs::write(folder.0.join(file), content).unwrap();
        let error = Identity::load(&folder.0).unwrap_err().to_string();
        assert!(error.contains(file), "{error}");
        std::fs::write(folder.0.join(file), vec![b'x'; 70_000]).unwrap();
        let error = Identity::load(&folder.0).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains("larger"), "{error}");
    }
    let error = Identity::load("/nonexistent/identity").unwrap_err().to_string();
    assert!(error.contains("/nonexistent/identity/ca.pem"), "{error}");
}
