// netpol enforces the NetworkPolicies of a cluster of one node, by the engine that kind's network has.
//
// The engine's own program diverts packets by an nftables expression that some kernels are built without. Here iptables
// diverts them to the queue (tests/support/cluster/node.py), and the engine gives its verdicts as ever.
package main

import (
	"context"
	"flag"
	"log"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "how the API server is reached")
	node := flag.String("node", "", "the node's name")
	queue := flag.Int("queue", 100, "number of the NFQUEUE")
	flag.Parse()
	if err := run(context.Background(), *kubeconfig, *node, *queue); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, kubeconfig, node string, queue int) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	policies := factory.Networking().V1().NetworkPolicies()
	namespaces, pods := factory.Core().V1().Namespaces(), factory.Core().V1().Pods()
	settings := networkpolicy.Config{QueueID: queue, NodeName: node}
	controller, err := networkpolicy.NewController(
		client, policies, namespaces, pods, nil, nil, nil, nil, settings,
	)
	if err != nil {
		return err
	}
	factory.Start(ctx.Done())
	return controller.Run(ctx)
}
