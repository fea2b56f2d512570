// Rules checks files of Prometheus rules by Prometheus' own reading of them, as it does at its start,
// and prints the metrics that they ask for, one a line: a test compares these with what is exposed.
package main

import (
	"fmt"
	"log/slog"
	"os"
	"slices"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
)

func main() {
	promql := parser.NewParser(parser.Options{})
	var names []string
	failed := len(os.Args) < 2
	for _, file := range os.Args[1:] {
		groups, errs := rulefmt.ParseFile(file, false, model.UTF8Validation, promql, slog.Default())
		for _, err := range errs {
			fmt.Fprintln(os.Stderr, err)
			failed = true
		}
		if len(errs) > 0 {
			continue
		}
		for _, group := range groups.Groups {
			for _, rule := range group.Rules {
				expression, _ := promql.ParseExpr(rule.Expr) // ParseFile has read it already
				parser.Inspect(expression, func(node parser.Node, _ []parser.Node) error {
					if selector, ok := node.(*parser.VectorSelector); ok {
						names = append(names, selector.Name)
					}
					return nil
				})
			}
		}
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		fmt.Println(name)
	}
	if failed {
		os.Exit(1)
	}
}
