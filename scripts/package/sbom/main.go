package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

// The parts of https://cyclonedx.org/docs/1.5/json/ that there is something to say in.
type (
	document struct {
		Format       string       `json:"bomFormat"`
		Spec         string       `json:"specVersion"`
		Serial       string       `json:"serialNumber"`
		Version      int          `json:"version"`
		Metadata     metadata     `json:"metadata"`
		Components   []component  `json:"components"`
		Dependencies []dependency `json:"dependencies"`
	}
	metadata struct {
		Timestamp string    `json:"timestamp,omitempty"`
		Component component `json:"component"`
	}
	component struct {
		Ref        string     `json:"bom-ref"`
		Type       string     `json:"type"`
		Name       string     `json:"name"`
		Version    string     `json:"version,omitempty"`
		PURL       string     `json:"purl,omitempty"`
		Hashes     []hash     `json:"hashes,omitempty"`
		Properties []property `json:"properties,omitempty"`
	}
	hash struct {
		Algorithm string `json:"alg"`
		Content   string `json:"content"`
	}
	property struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	}
	dependency struct {
		Ref       string   `json:"ref"`
		DependsOn []string `json:"dependsOn,omitempty"`
	}
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: sbom PROGRAM VERSION")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func run(file, version string) error {
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	d, err := describe(info, b, os.Getenv("SOURCE_DATE_EPOCH"))
	if err != nil {
		return err
	}
	d.Metadata.Component.Version = version // its module has none
	out := json.NewEncoder(os.Stdout)
	out.SetIndent("", "  ")
	return out.Encode(d)
}

// describe makes the document of a program of these bytes, at a time in seconds since 1970, if any.
func describe(info *debug.BuildInfo, program []byte, epoch string) (*document, error) {
	sum := sha256.Sum256(program)
	name := path.Base(info.Path)
	d := &document{
		Format: "CycloneDX", Spec: "1.5", Version: 1, Serial: "urn:uuid:" + uuid.NewSHA1(uuid.Nil, sum[:]).String(),
		Metadata: metadata{Component: component{
			Ref: name, Type: "application", Name: name,
			Hashes: []hash{{"SHA-256", fmt.Sprintf("%x", sum)}},
		}},
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" || s.Key == "GOARCH" || s.Key == "GOOS" {
			d.Metadata.Component.Properties = append(d.Metadata.Component.Properties, property{"go:" + s.Key, s.Value})
		}
	}
	if epoch != "" {
		seconds, err := strconv.ParseInt(epoch, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
		}
		d.Metadata.Timestamp = time.Unix(seconds, 0).UTC().Format(time.RFC3339)
	}
	goVersion, _, _ := strings.Cut(strings.TrimPrefix(info.GoVersion, "go"), " ")
	d.Components = append(d.Components, library("stdlib", goVersion, ""))
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		d.Components = append(d.Components, library(m.Path, m.Version, m.Sum))
	}
	all := dependency{Ref: name}
	for _, c := range d.Components {
		all.DependsOn = append(all.DependsOn, c.Ref)
	}
	d.Dependencies = []dependency{all}
	return d, nil
}

func library(module, version, sum string) component {
	purl := "pkg:golang/" + module + "@" + version
	c := component{Ref: purl, Type: "library", Name: module, Version: version, PURL: purl}
	if sum != "" { // of all files, by Go's own rule: no hash of CycloneDX's
		c.Properties = []property{{"go:sum", sum}}
	}
	return c
}
