//! The kinds of the cluster API, as a file for `kubectl apply`.

use crate::k8s::api;

/// One YAML document for each CRD.
pub fn yaml() -> Result<String, serde_saphyr::ser::Error> {
    let mut text = String::new();
    for crd in api::crds() {
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(&crd)?);
    }
    Ok(text)
}
