// The conformance runner plays the cases of tests/conformance with this client:
//
//	go run ./conformance --target host:port --control http://host:port FILE...
//
// It prints one line of JSON for each case, and its exit status is 1 if any failed.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
)

type outcome struct {
	Case   string `json:"case"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
}

func main() {
	target := flag.String("target", "", "`host:port` of the service")
	control := flag.String("control", "", "`address` of the HTTP server that takes faults")
	flag.Parse()
	if *target == "" || *control == "" || flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	failed, err := playFiles(*target, *control, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if failed > 0 {
		os.Exit(1)
	}
}

// playFiles prints the outcomes, and gives how many cases failed.
func playFiles(target, control string, files []string) (int, error) {
	player, err := newPlayer(target, control)
	if err != nil {
		return 0, err
	}
	defer player.close()
	failed := 0
	lines := json.NewEncoder(os.Stdout)
	lines.SetEscapeHTML(false)
	for _, file := range files {
		cases, err := casesOf(file)
		if err != nil {
			return failed, err
		}
		for _, each := range cases {
			detail := player.play(each)
			if detail != "" {
				failed++
			}
			if err := lines.Encode(outcome{each.Name, detail == "", detail}); err != nil {
				return failed, err
			}
		}
	}
	return failed, nil
}
