//! Network configurations as CNIs of the field write them, for tests: what matters of them is their shape.

use serde_json::{Value, json};

/// The entry of tests.
pub(crate) fn entry() -> Value {
    json!({ "type": "underpass-cni", "agentSocket": "/run/underpass/plugin.sock" })
}

/// By the name that each CNI gives its file.
pub(crate) const FIELD: [(&str, &str); 9] = [
    (
        "10-flannel.conflist",
        r#"{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    {
      "type": "flannel",
      "delegate": {
        "hairpinMode": true,
        "isDefaultGateway": true
      }
    },
    {
      "type": "portmap",
      "capabilities": {
        "portMappings": true
      }
    }
  ]
}
"#,
    ),
    (
        "10-calico.conflist",
        r#"{
  "name": "k8s-pod-network",
  "cniVersion": "0.3.1",
  "plugins": [
    {"type":"calico","log_level":"info","datastore_type":"kubernetes","nodename":"node-1","mtu":0,"ipam":{"type":"calico-ipam"},"policy":{"type":"k8s"},"kubernetes":{"kubeconfig":"/etc/cni/net.d/calico-kubeconfig"}},
    {"type":"portmap","snat":true,"capabilities":{"portMappings":true}},
    {"type":"bandwidth","capabilities":{"bandwidth":true}}
  ]
}"#,
    ),
    (
        "05-cilium.conflist",
        "\n{\n  \"cniVersion\": \"0.3.1\",\n  \"name\": \"cilium\",\n  \"plugins\": [\n    {\n       \"type\": \"cilium-cni\",\n       \"enable-debug\": false,\n       \"log-file\": \"/var/run/cilium/cilium-cni.log\"\n    }\n  ]\n}\n",
    ),
    (
        "10-kindnet.conflist",
        "\n{\n\t\"cniVersion\": \"0.3.1\",\n\t\"name\": \"kindnet\",\n\t\"plugins\": [\n\t{\n\t\t\"type\": \"ptp\",\n\t\t\"ipMasq\": false,\n\t\t\"ipam\": {\n\t\t\t\"type\": \"host-local\",\n\t\t\t\"dataDir\": \"/run/cni-ipam-state\",\n\t\t\t\"routes\": [{ \"dst\": \"0.0.0.0/0\" }],\n\t\t\t\"ranges\": [[{ \"subnet\": \"10.244.1.0/24\" }]]\n\t\t},\n\t\t\"mtu\": 1500\n\t},\n\t{\n\t\t\"type\": \"portmap\",\n\t\t\"capabilities\": { \"portMappings\": true }\n\t}\n\t]\n}\n",
    ),
    (
        "10-aws.conflist",
        r#"{"cniVersion":"0.4.0","name":"aws-cni","disableCheck":true,"plugins":[{"name":"aws-cni","type":"aws-cni","vethPrefix":"eni","mtu":"9001","podSGEnforcingMode":"strict"},{"type":"egress-cni","enabled":"false","ipam":{"type":"host-local","ranges":[[{"subnet":"169.254.172.0/22"}]],"routes":[{"dst":"0.0.0.0/0"}]}},{"type":"portmap","capabilities":{"portMappings":true},"snat":true}]}"#,
    ),
    (
        "10-bridge.conflist",
        r#"{ "cniVersion": "1.0.0", "name": "pods", "plugins": [
  { "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
    "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.244.0.0/24" }], [{ "subnet": "fd00:244::/64" }]], "routes": [{ "dst": "0.0.0.0/0" }] } },
  { "type": "portmap", "capabilities": { "portMappings": true } }, { "type": "firewall" } ] }
"#,
    ),
    (
        "80-ptp.conflist",
        "{\r\n  \"cniVersion\": \"1.1.0\",\r\n  \"cniVersions\": [\"0.4.0\", \"1.0.0\", \"1.1.0\"],\r\n  \"name\": \"ptp\",\r\n  \"disableGC\": true,\r\n  \"plugins\": [\r\n    { \"type\": \"ptp\", \"ipam\": { \"type\": \"host-local\" } }\r\n  ]\r\n}\r\n",
    ),
    (
        "00-multus.conf",
        r#"{"cniVersion":"0.3.1","name":"multus-cni-network","type":"multus","capabilities":{"bandwidth":true,"portMappings":true},"clusterNetwork":"/host/etc/cni/net.d/10-calico.conflist","kubeconfig":"/etc/cni/net.d/multus.d/multus.kubeconfig"}"#,
    ),
    (
        "200-old.json",
        "{\n    \"cniVersion\": \"0.4.0\",\n    \"name\": \"mynet\",\n    \"type\": \"bridge\",\n    \"ipam\": { \"type\": \"host-local\", \"subnet\": \"10.1.0.0/16\" }\n}\n",
    ),
];
