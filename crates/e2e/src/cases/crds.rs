//! Custom resources with kubectl, from the definition to its deletion.

use crate::{Case, Scope};
use anyhow::{Context, Result, ensure};

pub const CASES: &[Case] = &[Case { name: "a_custom_resource_with_kubectl", run: custom_resource }];

const DEFINITION: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: crontabs.stable.example.com}
spec:
  group: stable.example.com
  scope: Namespaced
  names: {plural: crontabs, kind: CronTab, shortNames: [ct], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas, labelSelectorPath: .status.labelSelector}
    additionalPrinterColumns:
    - {name: Spec, type: string, jsonPath: .spec.cronSpec, description: When it runs.}
    - {name: Replicas, type: integer, jsonPath: .spec.replicas}
    selectableFields: [{jsonPath: .spec.cronSpec}]
    schema:
      openAPIV3Schema:
        type: object
        description: A job that runs again and again.
        properties:
          spec:
            type: object
            description: What to run, and when.
            required: [cronSpec]
            x-kubernetes-validations:
            - {rule: self.replicas != 7, messageExpression: '''not %d''.format([self.replicas])', fieldPath: .replicas}
            - {rule: self.image == oldSelf.image || self.replicas > 1, message: one keeps its image, reason: FieldValueForbidden}
            properties:
              cronSpec: {type: string, description: The times., pattern: '^(\\d+|\\*)(/\\d+)?(\\s+(\\d+|\\*)(/\\d+)?){4}$'}
              image: {type: string, default: busybox}
              more: {type: object, description: What else there is., x-kubernetes-preserve-unknown-fields: true}
              replicas: {type: integer, minimum: 1, maximum: 10, default: 1}
          status:
            type: object
            properties: {replicas: {type: integer}, labelSelector: {type: string}}
";

fn object(name: &str, more: &str) -> Vec<u8> {
    format!(
        "{{apiVersion: stable.example.com/v1, kind: CronTab, metadata: {{name: {name}}}, spec: {{cronSpec: '* * * * */5'{more}}}}}"
    )
    .into_bytes()
}

/// What kubectl says of an object that it cannot apply.
fn refused_of(scope: &Scope<'_>, object: &[u8]) -> Result<String> {
    let refused = scope.kubectl_stdin(&["apply", "-f", "-"], object).err().context("it was applied")?;
    Ok(format!("{refused:#}"))
}

fn custom_resource(scope: &Scope<'_>) -> Result<()> {
    let said = scope.kubectl_stdin(&["apply", "-f", "-"], DEFINITION.as_bytes())?;
    ensure!(
        said.contains("customresourcedefinition.apiextensions.k8s.io/crontabs.stable.example.com created"),
        "{said}"
    );
    scope.kubectl(&[
        "wait",
        "--for=condition=Established",
        "crd/crontabs.stable.example.com",
        "--timeout=30s",
    ])?;
    let said = scope.kubectl_stdin(&["apply", "-f", "-"], &object("one", ""))?;
    ensure!(said.contains("crontab.stable.example.com/one created"), "{said}");
    let said = scope.kubectl_stdin(&["apply", "-f", "-"], &object("one", ""))?;
    ensure!(said.contains("crontab.stable.example.com/one unchanged"), "{said}");
    let table = scope.kubectl(&["get", "ct"])?;
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    ensure!(
        lines[0] == ["NAME", "SPEC", "REPLICAS"] && lines[1] == ["one", "*", "*", "*", "*", "*/5", "1"],
        "{table}"
    );
    let all = scope.kubectl(&["get", "all"])?;
    ensure!(all.contains("crontab.stable.example.com/one"), "{all}");
    let image = scope.jsonpath(&["ct", "one"], "{.spec.image}")?;
    ensure!(image == "busybox", "default {image}");
    let told = scope.kubectl(&["explain", "crontabs.spec"])?;
    ensure!(
        told.contains("What to run, and when.") && told.contains("cronSpec\t<string> -required-"),
        "{told}"
    );
    let shown = scope.kubectl(&["api-resources", "--api-group=stable.example.com"])?;
    ensure!(shown.contains("crontabs") && shown.contains("ct") && shown.contains("CronTab"), "{shown}");
    let told = scope.kubectl(&["explain", "crontabs.spec.more"])?;
    ensure!(told.contains("What else there is."), "{told}");
    scope.kubectl_stdin(&["apply", "-f", "-"], &object("one", ", more: {a: {b: c}}"))?;
    let more = scope.jsonpath(&["ct", "one"], "{.spec.more}")?;
    ensure!(more == r#"{"a":{"b":"c"}}"#, "{more}");
    // Unknown fields are refused where kubectl asks so, and dropped where it does not.
    let refused = refused_of(scope, &object("two", ", odd: 1"))?;
    ensure!(refused.contains("unknown field \"spec.odd\""), "{refused}");
    scope.kubectl_stdin(&["apply", "--validate=ignore", "-f", "-"], &object("two", ", odd: 1"))?;
    let odd = scope.jsonpath(&["ct", "two"], "{.spec.odd}")?;
    ensure!(odd.is_empty(), "pruned: {odd}");
    let refused = refused_of(scope, &object("three", ", replicas: 11"))?;
    ensure!(
        refused.contains(
            "spec.replicas: Invalid value: 11: spec.replicas in body should be less than or equal to 10"
        ),
        "{refused}"
    );
    // Rules are checked with the definition and evaluated over objects, old and new.
    let broken = DEFINITION.replace("self.replicas != 7", "self.none != 7");
    let refused = refused_of(scope, broken.as_bytes())?;
    ensure!(
        refused.contains("spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule: Invalid value: ")
            && refused.contains("compilation failed: ERROR: <input>:1:5: undefined field 'none'"),
        "{refused}"
    );
    let refused = refused_of(scope, &object("seven", ", replicas: 7"))?;
    ensure!(refused.contains("spec.replicas: Invalid value: \"object\": not 7"), "{refused}");
    let refused = refused_of(scope, &object("one", ", image: x"))?;
    ensure!(refused.contains("spec: Forbidden: one keeps its image"), "{refused}");
    scope.kubectl(&["scale", "ct/one", "--replicas=3"])?;
    let replicas = scope.jsonpath(&["ct", "one"], "{.spec.replicas}")?;
    ensure!(replicas == "3", "scaled to {replicas}");
    let status = r#"{"spec": {"image": "other"}, "status": {"replicas": 3}}"#;
    scope.kubectl(&["patch", "ct/one", "--subresource=status", "--type=merge", "-p", status])?;
    let both = scope.jsonpath(&["ct", "one"], "{.spec.image} {.status.replicas}")?;
    ensure!(both == "busybox 3", "{both}");
    let found = scope.kubectl(&["get", "ct", "--field-selector=spec.cronSpec=none"])?;
    ensure!(found.contains("No resources found"), "{found}");
    scope.kubectl_stdin(
        &["apply", "--server-side", "--force-conflicts", "-f", "-"],
        &object("one", ", image: x"),
    )?;
    scope.kubectl(&["delete", "crd", "crontabs.stable.example.com", "--timeout=60s"])?;
    // What kubectl knew of the group is still in its cache.
    let gone = scope.kubectl_fails(&["get", "ct"])?;
    ensure!(gone.contains("the server could not find the requested resource"), "{gone}");
    let left = scope.kubectl(&["api-resources", "--api-group=stable.example.com"])?;
    ensure!(!left.contains("crontabs"), "{left}");
    Ok(())
}
