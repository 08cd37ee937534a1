package engineapi

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// fill gives every field of v that is not too deep a value that is not zero; every other one, when odd is 0 or 1.
func fill(v reflect.Value, depth, odd int) {
	if depth > 5 || !v.CanSet() {
		return
	}
	switch v.Interface().(type) {
	case netip.Addr:
		v.Set(reflect.ValueOf(netip.MustParseAddr("10.1.2.3")))
		return
	case netip.Prefix:
		v.Set(reflect.ValueOf(netip.MustParsePrefix("10.1.2.0/24")))
		return
	case network.Port:
		v.Set(reflect.ValueOf(network.MustParsePort("80/tcp")))
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), depth+1, odd)
	case reflect.Struct:
		for i := range v.NumField() {
			if odd > 1 || i%2 == odd {
				fill(v.Field(i), depth+1, odd)
			}
		}
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(-7)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(7)
	case reflect.String:
		v.SetString("a <b> \"c\"\n\x00ä")
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0), depth+1, odd)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, depth+1, odd)
		fill(value, depth+1, odd)
		v.SetMapIndex(key, value)
	}
}

// What is left out is what the other side has anyway.
func TestSparse(t *testing.T) {
	no := false
	bodies := []container.CreateRequest{{}, {Config: &container.Config{Image: "x", Cmd: []string{}}, HostConfig: &container.HostConfig{Init: &no, MaskedPaths: []string{}, CapAdd: []string{}}}}
	for odd := range 3 {
		var full container.CreateRequest
		fill(reflect.ValueOf(&full).Elem(), 0, odd)
		bodies = append(bodies, full)
	}
	for i, body := range bodies {
		data, err := Sparse(body)
		if err != nil {
			t.Fatal(err)
		}
		whole, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		var got, want container.CreateRequest
		if err := json.Unmarshal(data, &got); err != nil {
			t.Fatalf("%d: %v: %s", i, err, data)
		}
		if err := json.Unmarshal(whole, &want); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			want.Config = got.Config // null fields make one, nothing makes none
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%d: %s\nis not %s", i, data, whole)
		}
	}
	if data, err := Sparse(bodies[1]); err != nil || string(data) != `{"HostConfig":{"CapAdd":[],"MaskedPaths":[],"Init":false},"Cmd":[],"Image":"x"}` {
		t.Errorf("%s, %v", data, err)
	}
}
