// Package dataporttest has links that a test can damage.
//
// Proxy is a TCP link on 127.0.0.1 between real nodes: reset, silent drop of one or both directions, stall, delay, rate.
// Net is a network in memory with the same faults, for Config.Dial and Config.ListenFunc: without sockets, so that a test
// in a testing/synctest bubble runs on its clock.
//
// What a link drops it drops as a network does: nobody is told, writes go on succeeding.
package dataporttest
