package nbd

import (
	"strings"
	"testing"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

func TestMetaContext(t *testing.T) {
	_, path := start(t, Options{}, twoExports()...)
	list, set := optionListMetaContext, optionSetMetaContext
	many := make([]string, 500)
	for i := range many {
		many[i] = "x-a:"
	}
	for _, c := range []struct {
		name string
		id   uint32
		data []any
		want uint32
		id32 int // of the context in the reply, -1: none
	}{
		{"list all", list, metaData(""), repAck, 0},
		{"list by wildcard", list, metaData("first", "base:"), repAck, 0},
		{"list by name", list, metaData("second", "x-no:thing", allocationName), repAck, 0},
		{"list another", list, metaData("second", "base:other", "qemu:"), repAck, -1},
		{"list many", list, metaData("second", many...), repAck, -1},
		{"set", set, metaData("first", allocationName), repAck, 1},
		{"set twice the same", set, metaData("first", allocationName, allocationName), repAck, 1},
		{"set nothing", set, metaData("first"), repAck, -1},
		{"set by wildcard", set, metaData("first", "base:"), repAck, -1},
		{"set another", set, metaData("first", "base:allocationx"), repAck, -1},
		{"unknown export", set, metaData("third", allocationName), protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN, -1},
		{"unknown export in a list", list, metaData("third"), protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN, -1},
		{"no namespace", set, metaData("first", "allocation"), replyErrInvalid, -1},
		{"surplus", set, append(metaData("first", allocationName), "x"), replyErrInvalid, -1},
		{"4 Gi queries", set, []any{uint32(0), ^uint32(0)}, replyErrInvalid, -1},
		{"a query of 4 GiB", set, []any{uint32(0), uint32(1), ^uint32(0), "base:"}, replyErrInvalid, -1},
		{"a name of 4 GiB", list, []any{^uint32(0), "first"}, replyErrInvalid, -1},
		{"a name longer than names are", list, metaData(strings.Repeat("n", maxNameSize+1)), replyErrInvalid, -1},
		{"too large", list, metaData("", strings.Repeat("x:", maxOptionSize)), replyErrTooBig, -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := dial(t, path)
			client.greeting(clientFixedNewstyle)
			client.option(c.id, c.data...)
			if kind, _ := client.answer(c.id); kind != replyErrInvalid && kind != replyErrTooBig {
				t.Fatalf("before structured replies: %x", kind)
			}
			client.option(optionStructuredReply)
			client.acknowledged(optionStructuredReply)
			client.option(c.id, c.data...)
			got := -1
			kind, data := client.answer(c.id)
			if kind == replyMetaContext {
				if string(data[4:]) != allocationName {
					t.Fatalf("%q", data)
				}
				got = int(be32(data))
				kind, _ = client.answer(c.id)
			}
			if kind != c.want || got != c.id32 {
				t.Fatalf("%x with context %d, want %x with %d", kind, got, c.want, c.id32)
			}
		})
	}
	// Cut at every byte, each is malformed and costs nothing.
	client := dial(t, path)
	client.greeting(clientFixedNewstyle)
	client.option(optionStructuredReply, "surplus")
	if kind, _ := client.answer(optionStructuredReply); kind != replyErrInvalid {
		t.Fatalf("%x", kind)
	}
	client.option(optionStructuredReply)
	client.acknowledged(optionStructuredReply)
	for whole, cut := encode(metaData("first", allocationName)...), 0; cut < len(whole); cut++ {
		client.option(set, whole[:cut])
		if kind, _ := client.answer(set); kind != replyErrInvalid {
			t.Fatalf("cut at %d: %x", cut, kind)
		}
	}
}

// BLOCK_STATUS works when the last SET_META_CONTEXT found something, for the export that is served in the end, and never
// else.
func TestWhenStatusMayBeAsked(t *testing.T) {
	_, path := start(t, Options{}, twoExports()...)
	type option struct {
		id   uint32
		data []any
	}
	structured, set := option{optionStructuredReply, nil}, option{optionSetMetaContext, metaData("first", allocationName)}
	for _, c := range []struct {
		name    string
		options []option
		last    option
		want    string
	}{
		{"set", []option{structured, set}, option{optGo, goData("first")}, "512:3"},
		{"set, by the default name", []option{structured, set}, option{optGo, goData("")}, "512:3"},
		{"set, then the old way in", []option{structured, set}, option{optionExportName, []any{"first"}}, "512:3"},
		{"not set", []option{structured}, option{optGo, goData("first")}, "error 22"},
		{"not even structured", nil, option{optGo, goData("first")}, "simple 22"},
		{"set for another", []option{structured, set}, option{optGo, goData("second")}, "error 22"},
		{"set for another, the old way", []option{structured, set}, option{optionExportName, []any{"second"}}, "error 22"},
		{"only listed", []option{structured, {optionListMetaContext, metaData("first")}}, option{optGo, goData("first")}, "error 22"},
		{"listed after", []option{structured, set, {optionListMetaContext, metaData("first", "x:")}}, option{optGo, goData("first")}, "512:3"},
		{"set to nothing after", []option{structured, set, {optionSetMetaContext, metaData("first")}}, option{optGo, goData("first")}, "error 22"},
		{"failed after", []option{structured, set, {optionSetMetaContext, metaData("third", "base:")}}, option{optGo, goData("first")}, "error 22"},
		{"malformed after", []option{structured, set, {optionSetMetaContext, nil}}, option{optGo, goData("first")}, "error 22"},
		{
			"too large after",
			[]option{structured, set, {optionSetMetaContext, []any{make([]byte, maxOptionSize+1)}}},
			option{optGo, goData("first")},
			"error 22",
		},
		{"info in between", []option{structured, set, {optInfo, goData("second")}}, option{optGo, goData("first")}, "512:3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := dial(t, path)
			client.greeting(clientFixedNewstyle | clientNoZeroes)
			final := func(id uint32) {
				for kind, _ := client.answer(id); kind != repAck && kind < 1<<31; kind, _ = client.answer(id) {
				}
			}
			for _, o := range c.options {
				client.option(o.id, o.data...)
				final(o.id)
			}
			client.option(c.last.id, c.last.data...)
			if c.last.id == optGo {
				final(optGo)
			} else {
				client.get(10)
			}
			client.put(request(cmdBlockStatus, 0, 1, 0, 512))
			if said, _ := client.structured(); said != c.want {
				t.Fatalf("%s, want %s", said, c.want)
			}
		})
	}
}

// INFO and the GO after it say the same, with and without structured replies.
func TestInfoThenGoAgree(t *testing.T) {
	_, path := start(t, Options{}, twoExports()...)
	for _, structured := range []bool{false, true} {
		c := dial(t, path)
		c.greeting(clientFixedNewstyle)
		if structured {
			c.option(optionStructuredReply)
			c.acknowledged(optionStructuredReply)
		}
		var said [2]string
		for i, id := range []uint32{optInfo, optGo} {
			c.option(id, goData("second", 1, 3)...)
			for kind, data := c.answer(id); kind != repAck; kind, data = c.answer(id) {
				said[i] += string(data)
			}
		}
		if said[0] != said[1] {
			t.Errorf("%q and %q", said[0], said[1])
		}
		if df := said[0][11]&byte(flagSendDF) != 0; df != structured {
			t.Errorf("DF is %v, structured replies %v", df, structured)
		}
	}
}
