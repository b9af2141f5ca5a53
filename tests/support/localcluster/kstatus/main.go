// kstatus tells what Flux and Helm make of objects, by their own libraries: a question a line in, an answer a line out.
package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	helm "github.com/fluxcd/helm-controller/api/v2"
	"github.com/fluxcd/pkg/apis/kustomize"
	"github.com/fluxcd/pkg/runtime/cel"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/yaml"
)

// question has an object to judge, and the expressions of a Kustomization's healthCheckExprs where they are to take the
// place of kstatus's rules; or the text of a HelmRelease, of which every field must be one.
type question struct {
	Object      map[string]any                    `json:"object"`
	Expressions *kustomize.HealthCheckExpressions `json:"expressions"`
	Release     string                            `json:"release"`
}

type answer struct {
	Status  status.Status `json:"status"`
	Message string        `json:"message"`
	Error   string        `json:"error"`
}

func main() {
	if err := serve(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(in io.Reader, out io.Writer) error {
	reader := bufio.NewReader(in)
	for {
		line, err := reader.ReadBytes('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		text, err := json.Marshal(reply(line))
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(out, "%s\n", text); err != nil {
			return err
		}
	}
}

func reply(line []byte) answer {
	var asked question
	// this package's Unmarshal keeps whole numbers whole, as the libraries demand of a generation
	if err := json.Unmarshal(line, &asked); err != nil {
		return answer{Error: err.Error()}
	}
	result, err := judge(asked)
	if err != nil {
		return answer{Error: err.Error()}
	}
	return answer{Status: result.Status, Message: result.Message}
}

func judge(asked question) (*status.Result, error) {
	if asked.Release != "" {
		return &status.Result{}, yaml.UnmarshalStrict([]byte(asked.Release), &helm.HelmRelease{})
	}
	object := &unstructured.Unstructured{Object: asked.Object}
	if asked.Expressions == nil {
		return status.Compute(object)
	}
	evaluator, err := cel.NewStatusEvaluator(asked.Expressions)
	if err != nil {
		return nil, err
	}
	return evaluator.Evaluate(context.Background(), object)
}
