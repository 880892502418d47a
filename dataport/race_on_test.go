//go:build race

package dataport_test

const raceEnabled = true
