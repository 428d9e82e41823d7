//! Pieces of the CRDs' schemas: bounds, and rules in CEL with a message that says what to write instead.
//!
//! Everything is bounded: the API server refuses rules whose cost it cannot estimate, and an unbounded list is a bug.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// A rule of one field, or of one object.
fn rule(rule: &str, message: &str) -> Value {
    json!({"rule": rule, "message": message})
}

/// Two rules, so that the message tells which half is wrong.
pub(super) fn image(_: &mut SchemaGenerator) -> Schema {
    let name = concat!(
        r"self.split('@')[0].matches('^(([A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*",
        r"|\\[[a-fA-F0-9:]+\\])(:[0-9]+)?/)?[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*",
        r"(/[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?$')",
    );
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": 512,
        "x-kubernetes-validations": [
            rule(
                "!self.contains('@') || self.matches('@(sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128})$')",
                "the digest after '@' must be sha256:<64 lower-case hex digits> or sha512:<128>",
            ),
            rule(
                "!self.matches('^[a-f0-9]{64}$')",
                "64 hex digits are the id of an image, not its name",
            ),
            rule(
                name,
                "must be an image reference: [host[:port]/]repository[:tag][@digest], repository in lower case, no spaces, no scheme",
            ),
        ],
    })
}

pub(super) fn images(generator: &mut SchemaGenerator) -> Schema {
    let items = image(generator);
    json_schema!({"type": "array", "maxItems": 256, "items": items, "x-kubernetes-list-type": "atomic"})
}

fn duration(least: &str, most: &str) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 16,
        "x-kubernetes-validations": [rule(
            &format!(
                "self.matches('^([0-9]{{1,6}}(h|m|s)){{1,3}}$') && duration(self) >= duration('{least}') && duration(self) <= duration('{most}')"
            ),
            &format!("must be a duration from {least} to {most}, in hours, minutes and seconds, such as 1h30m"),
        )],
    })
}

pub(super) fn refresh_interval(_: &mut SchemaGenerator) -> Schema {
    duration("5m", "720h")
}

pub(super) fn retention(_: &mut SchemaGenerator) -> Schema {
    duration("0s", "8760h")
}

pub(super) fn rollout_deadline(_: &mut SchemaGenerator) -> Schema {
    duration("1m", "720h")
}

pub(super) fn gate_deadline(_: &mut SchemaGenerator) -> Schema {
    duration("10s", "24h")
}

pub(super) fn window_duration(_: &mut SchemaGenerator) -> Schema {
    duration("1m", "24h")
}

pub(super) fn unused_for(_: &mut SchemaGenerator) -> Schema {
    duration("1m", "87600h")
}

pub(super) fn prune_interval(_: &mut SchemaGenerator) -> Schema {
    duration("1m", "720h")
}

pub(super) fn window_start(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 5,
        "x-kubernetes-validations": [rule(
            "self.matches('^([01][0-9]|2[0-3]):[0-5][0-9]$')",
            "must be a time of day in UTC, such as 22:00",
        )],
    })
}

pub(super) fn days(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 7,
        "items": {"type": "string", "enum": ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]},
        "x-kubernetes-list-type": "set",
    })
}

pub(super) fn platforms(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 8,
        "items": {
            "type": "string",
            "maxLength": 64,
            "x-kubernetes-validations": [rule(
                "self.matches('^[a-z0-9]+/[a-z0-9_]+(/[a-z0-9.]+)?$')",
                "must be os/architecture[/variant], such as linux/arm64",
            )],
        },
        "x-kubernetes-list-type": "set",
    })
}

/// Names of objects: nodes, secrets.
fn name(most: u32) -> Value {
    json!({
        "type": "string",
        "minLength": 1,
        "maxLength": most,
        "x-kubernetes-validations": [rule(
            "!format.dns1123Subdomain().validate(self).hasValue()",
            "must be the name of an object: lower-case letters, digits, '-' and '.'",
        )],
    })
}

pub(super) fn object_name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": 253,
        "x-kubernetes-validations": [rule(
            "!format.dns1123Subdomain().validate(self).hasValue()",
            "must be the name of an object: lower-case letters, digits, '-' and '.'",
        )],
    })
}

pub(super) fn namespace(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": 63,
        "x-kubernetes-validations": [rule(
            "!format.dns1123Label().validate(self).hasValue()",
            "must be the name of a namespace",
        )],
    })
}

pub(super) fn namespaces(generator: &mut SchemaGenerator) -> Schema {
    let items = namespace(generator);
    json_schema!({"type": "array", "maxItems": 64, "items": items, "x-kubernetes-list-type": "set"})
}

pub(super) fn node_names(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "minItems": 1, "maxItems": 256, "items": name(253), "x-kubernetes-list-type": "atomic"})
}

/// A label's or taint's key.
pub(super) fn key(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": 317,
        "x-kubernetes-validations": [rule(
            "!format.qualifiedName().validate(self).hasValue()",
            "must be a qualified name, such as example.com/pool",
        )],
    })
}

/// A key that the controller may set or remove on nodes: what Kubernetes itself steers by is not among them.
pub(super) fn gate_key(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": 317,
        "x-kubernetes-validations": [
            rule(
                "!format.qualifiedName().validate(self).hasValue()",
                "must be a qualified name, such as example.com/pool",
            ),
            rule(
                "!self.matches('^([^/]*[.])?(kubernetes|k8s)[.]io/')",
                "keys of kubernetes.io and k8s.io are not for gates: take a domain of your own",
            ),
        ],
    })
}

pub(super) fn match_labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {"type": "string", "maxLength": 63},
        "x-kubernetes-map-type": "atomic",
        "x-kubernetes-validations": [
            rule(
                "self.all(k, size(k) <= 317 && !format.qualifiedName().validate(k).hasValue())",
                "each key must be a qualified name, such as example.com/pool",
            ),
            rule(
                "self.all(k, !format.labelValue().validate(self[k]).hasValue())",
                "each value must be a label value: at most 63 letters, digits, '-', '_' and '.'",
            ),
        ],
    })
}

pub(super) fn label_values(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "items": {
            "type": "string",
            "maxLength": 63,
            "x-kubernetes-validations": [rule(
                "!format.labelValue().validate(self).hasValue()",
                "must be a label value: at most 63 letters, digits, '-', '_' and '.'",
            )],
        },
        "x-kubernetes-list-type": "atomic",
    })
}

pub(super) fn term_values(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "items": {"type": "string", "maxLength": 63},
        "x-kubernetes-list-type": "atomic",
    })
}

pub(super) fn label_operator(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"]})
}

pub(super) fn term_operator(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]})
}

pub(super) fn workload_kind(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": ["Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob"]})
}

/// Bytes, or a share of the disk.
pub(super) fn amount(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "maxLength": 24,
        "x-kubernetes-validations": [rule(
            "type(self) == int ? self > 0 : self.matches('^(100|[1-9][0-9]?)%$') || (self.matches('^[0-9]{1,15}([.][0-9]{1,3})?(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$') && quantity(self).isGreaterThan(quantity('0')))",
            "must be bytes above 0, such as 20Gi, or a share of the disk from 1% to 100%",
        )],
    })
}

pub(super) fn patterns(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 64,
        "items": {
            "type": "string",
            "minLength": 1,
            "maxLength": 512,
            "x-kubernetes-validations": [rule(
                "self.matches('^[A-Za-z0-9._:/@*\\\\[\\\\]-]+$')",
                "must be a pattern of image names, such as registry.example/ci/*",
            )],
        },
        "x-kubernetes-list-type": "atomic",
    })
}

/// Conditions merge by type, everything else in a status is replaced whole.
pub(super) fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 8,
        "items": {
            "type": "object",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": {"type": "string", "maxLength": 64, "description": "What is claimed."},
                "status": {"type": "string", "enum": ["True", "False", "Unknown"], "description": "Whether it holds."},
                "observedGeneration": {
                    "type": "integer", "format": "int64", "minimum": 0,
                    "description": "Generation of the spec that the claim is about.",
                },
                "lastTransitionTime": {"type": "string", "format": "date-time", "description": "When the status last changed."},
                "reason": {"type": "string", "maxLength": 64, "description": "Why, as one word of a closed set."},
                "message": {"type": "string", "maxLength": 1024, "description": "Why, for people."},
            },
        },
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    })
}
