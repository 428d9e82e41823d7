//! The CustomResourceDefinitions, made from the Rust types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;

use super::{ALL, ClusterImagePrepull, ImagePrepull, ImagePrunePolicy, NodeImageCache};

/// All four, in the order of their names.
pub fn crds() -> Vec<CustomResourceDefinition> {
    let mut crds = vec![
        ClusterImagePrepull::crd(),
        ImagePrepull::crd(),
        ImagePrunePolicy::crd(),
        NodeImageCache::crd(),
    ];
    for crd in &mut crds {
        for version in &mut crd.spec.versions {
            let schema = version.schema.as_mut();
            if let Some(schema) = schema.and_then(|schema| schema.open_api_v3_schema.as_mut()) {
                schema.title = None;
                for (name, part) in schema.properties.iter_mut().flatten() {
                    finish(part, name == "status");
                }
            }
        }
    }
    crds
}

/// What the derived schema says too much, or in words that the API server does not know.
fn finish(schema: &mut JSONSchemaProps, status: bool) {
    // Optional fields are absent, never null: the API server drops the nulls that a client sends for them.
    schema.nullable = None;
    // `kubectl explain` would keep the line ends of the source besides its own.
    if let Some(description) = &mut schema.description {
        *description = description.replace('\n', " ");
    }
    // A status says what its writer said. An empty text is no default either, but what Rust has for an absent one.
    let empty = |default: &serde_json::Value| default.as_str() == Some("") || default.is_null();
    if status
        || schema
            .default
            .as_ref()
            .is_some_and(|default| empty(&default.0))
    {
        schema.default = None;
    }
    if schema.format.as_deref() == Some("uint64") {
        schema.format = Some("int64".to_owned());
        // Slots are the only ones; readers that keep numbers as doubles lose nothing.
        schema.maximum = Some(ALL as f64);
    }
    if schema.type_.as_deref() == Some("array") && schema.x_kubernetes_list_type.is_none() {
        schema.x_kubernetes_list_type = Some("atomic".to_owned());
    }
    for property in schema
        .properties
        .iter_mut()
        .flat_map(|all| all.values_mut())
    {
        finish(property, status);
    }
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(item)) => finish(item, status),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => {
            items.iter_mut().for_each(|item| finish(item, status));
        }
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(value)) = &mut schema.additional_properties {
        finish(value, status);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Paths below `schema` that have no bound: the API server could not estimate what a rule costs there, and an
    /// object could grow without end.
    fn unbounded(schema: &JSONSchemaProps, path: &str, found: &mut Vec<String>) {
        let bounded = match schema.type_.as_deref() {
            Some("string") => {
                schema.max_length.is_some()
                    || schema.enum_.is_some()
                    || schema.format.as_deref() == Some("date-time")
            }
            Some("array") => schema.max_items.is_some() && schema.x_kubernetes_list_type.is_some(),
            Some("object") => {
                schema.additional_properties.is_none() || schema.max_properties.is_some()
            }
            Some("integer" | "boolean") => true,
            None if schema.x_kubernetes_int_or_string == Some(true) => schema.max_length.is_some(),
            _ => false,
        };
        if !bounded {
            found.push(path.to_owned());
        }
        for (name, property) in schema.properties.iter().flatten() {
            if property.description.is_none() {
                found.push(format!("{path}.{name} has no description"));
            }
            unbounded(property, &format!("{path}.{name}"), found);
        }
        if let Some(JSONSchemaPropsOrArray::Schema(item)) = &schema.items {
            unbounded(item, &format!("{path}[]"), found);
        }
        if let Some(JSONSchemaPropsOrBool::Schema(value)) = &schema.additional_properties {
            unbounded(value, &format!("{path}{{}}"), found);
        }
    }

    #[test]
    fn everything_is_bounded_and_described() {
        let mut found = Vec::new();
        for crd in crds() {
            assert!(crd.spec.versions.iter().all(|version| {
                version
                    .subresources
                    .as_ref()
                    .is_some_and(|s| s.status.is_some())
            }));
            for version in &crd.spec.versions {
                let schema = version.schema.as_ref().unwrap();
                let schema = schema.open_api_v3_schema.as_ref().unwrap();
                for (name, part) in schema.properties.iter().flatten() {
                    unbounded(part, &format!("{}.{name}", crd.spec.names.kind), &mut found);
                }
            }
        }
        assert_eq!(found, [""; 0]);
    }
}
