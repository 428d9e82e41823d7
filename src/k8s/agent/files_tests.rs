//! What a folder of manifests declares, and what a bad file does to the others.

use std::fs;

use super::*;

const BASE: &str = "\
apiVersion: larder.dev/v1alpha1
kind: ClusterImagePrepull
metadata: {name: base}
spec: {images: ['r.io/app:1'], refreshInterval: 1h, pin: true}
";

fn names(folder: &Folder) -> Vec<String> {
    folder
        .files
        .values()
        .flatten()
        .flat_map(|declaration| &declaration.prepulls)
        .map(|prepull| prepull.identity.to_string())
        .collect()
}

#[test]
fn several_documents_of_every_kind() {
    let text = format!(
        "{BASE}---\n---\n\
         apiVersion: larder.dev/v1alpha1\nkind: ImagePrepull\nmetadata: {{name: app, namespace: team-a}}\n\
         spec: {{images: ['r.io/b:1', 'r.io/b:1', 'r.io/a:1'], pullSecrets: [{{name: s}}]}}\n---\n\
         apiVersion: larder.dev/v1alpha1\nkind: ImagePrunePolicy\nmetadata: {{name: default}}\nspec: {{rules: [{{keepLast: 3}}]}}\n"
    );
    let (declaration, fault) = parse("a.yaml", &text).unwrap();
    assert_eq!(fault, None);
    assert_eq!(declaration.policies.len(), 1);
    let [base, app] = &declaration.prepulls[..] else {
        panic!("{declaration:?}")
    };
    assert_eq!(base.identity.to_string(), "ClusterImagePrepull base");
    assert!(base.terms.pin);
    assert_eq!(base.terms.refresh_seconds, 3600);
    assert_eq!(app.identity.to_string(), "ImagePrepull team-a/app");
    let units = &app.revision.as_ref().unwrap().units;
    assert_eq!(units.len(), 2, "once each");
    assert!(app.faults[0].contains("pullSecrets"), "{:?}", app.faults);
    // The revision is what is to be held, and nothing else.
    let (other, _) = parse("b.yaml", &BASE.replace("pin: true", "pin: false")).unwrap();
    assert_eq!(base.revision, other.prepulls[0].revision);
    assert_eq!(base.identity.uid, other.prepulls[0].identity.uid);
    let (other, _) = parse("b.yaml", &BASE.replace("app:1", "app:2")).unwrap();
    assert_ne!(base.revision, other.prepulls[0].revision);
}

#[test]
fn a_bad_file_is_named_and_the_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("a.yaml", BASE);
    write("b.yaml", "kind: [\n");
    write("c.yml", &BASE.replace("name: base", "name: other"));
    write(".hidden.yaml", BASE);
    write("notes.txt", "hello");
    let mut reader = Reader::new(dir.path().to_owned());
    let folder = reader.look().unwrap();
    assert_eq!(
        names(&folder),
        ["ClusterImagePrepull base", "ClusterImagePrepull other"]
    );
    assert_eq!(folder.faults.keys().collect::<Vec<_>>(), ["b.yaml"]);
    assert!(folder.complete);

    // A file that becomes bad goes on to say what it said; one that goes away does not.
    let uid = |folder: &Folder, file: &str| {
        let declaration = folder.files[file].as_ref().unwrap();
        declaration.prepulls[0].identity.uid.clone()
    };
    let (a, c) = (uid(&folder, "a.yaml"), uid(&folder, "c.yml"));
    write("a.yaml", &format!("{BASE}  more: ["));
    fs::remove_file(dir.path().join("c.yml")).unwrap();
    let folder = reader.look().unwrap();
    assert_eq!(names(&folder), ["ClusterImagePrepull base"]);
    assert!(!folder.lost("a.yaml", &a));
    assert!(folder.lost("c.yml", &c));
    assert_eq!(folder.faults.len(), 2);

    // Nobody knows what a file said before the start that is bad at the start.
    let folder = Reader::new(dir.path().to_owned()).look().unwrap();
    assert!(names(&folder).is_empty());
    assert!(!folder.lost("a.yaml", &a));
    assert!(Reader::new(dir.path().join("none")).look().is_err());
}

#[test]
fn what_is_wrong_is_said() {
    for (text, cause) in [
        ("a: 1\n", "document 1: missing field `apiVersion`"),
        (
            "apiVersion: larder.dev/v1alpha1\nkind: ClusterImagePrepull\nmetadata: {}\nspec: {}\n",
            "document 1: metadata.name is missing",
        ),
        (
            "apiVersion: larder.dev/v1alpha1\nkind: ClusterImagePrepull\nmetadata: {name: a}\nspec: {images: 5}\n",
            "document 1: invalid type",
        ),
    ] {
        let error = parse("a.yaml", text).unwrap_err();
        assert!(error.starts_with(cause), "{text}: {error}");
        assert!(!error.contains('\n'));
    }
    let strange = "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\n";
    let (_, fault) = parse("a.yaml", &format!("{strange}---\n{BASE}")).unwrap();
    assert!(fault.unwrap().contains("v1 Secret is left out"));
}
