package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const annotationHash = "flotilla.dev/hash"

// nameTaken says that a child's name belongs to somebody else.
type nameTaken struct{ kind, name string }

func (e *nameTaken) Error() string {
	return fmt.Sprintf("A %s named %q exists and does not belong to this resource.", e.kind, e.name)
}

// child is one object of the plan: what is applied, and the same as the cache would show it.
type child struct {
	kind    string
	config  runtime.ApplyConfiguration
	desired client.Object
}

// plan lists the children in the order to apply them.
func plan(md *ModelDeployment) ([]child, error) {
	d, s := deployment(md), service(md)
	children := []child{
		{kind: "Deployment", config: d, desired: &appsv1.Deployment{}},
		{kind: "Service", config: s, desired: &corev1.Service{}},
	}
	metas := []*metav1ac.ObjectMetaApplyConfiguration{d.ObjectMetaApplyConfiguration, s.ObjectMetaApplyConfiguration}
	if replicas(md) > 1 {
		b := disruptionBudget(md)
		children = append(children, child{kind: "PodDisruptionBudget", config: b, desired: &policyv1.PodDisruptionBudget{}})
		metas = append(metas, b.ObjectMetaApplyConfiguration)
	}
	for i, c := range children {
		text, err := json.Marshal(c.config)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(text, c.desired); err != nil {
			return nil, err
		}
		// The hash finds fields that left the plan; comparing finds what somebody else changed.
		sum := sha256.Sum256(text)
		hash := map[string]string{annotationHash: hex.EncodeToString(sum[:])}
		metas[i].WithAnnotations(hash)
		c.desired.SetAnnotations(hash)
	}
	return children, nil
}

func (c child) empty() client.Object {
	switch c.desired.(type) {
	case *appsv1.Deployment:
		return &appsv1.Deployment{}
	case *corev1.Service:
		return &corev1.Service{}
	default:
		return &policyv1.PodDisruptionBudget{}
	}
}

// mergesWithStrangers tells the kinds of which an apply takes over a stranger's object without a conflict: their
// selectors merge, while that of a Deployment is immutable.
func (c child) mergesWithStrangers() bool {
	_, is := c.desired.(*appsv1.Deployment)
	return !is
}

// matches tells whether an apply would change nothing.
func (c child) matches(live client.Object) bool {
	return live.GetAnnotations()[annotationHash] == c.desired.GetAnnotations()[annotationHash] &&
		equality.Semantic.DeepDerivative(c.desired.GetLabels(), live.GetLabels()) &&
		equality.Semantic.DeepDerivative(spec(c.desired), spec(live))
}

func spec(object client.Object) any {
	switch o := object.(type) {
	case *appsv1.Deployment:
		return o.Spec
	case *corev1.Service:
		return o.Spec
	case *policyv1.PodDisruptionBudget:
		return o.Spec
	default:
		return nil
	}
}

// controlledBy tells whether the object's controller is this very ModelDeployment.
func controlledBy(object metav1.Object, md *ModelDeployment) bool {
	controller := metav1.GetControllerOfNoCopy(object)
	return controller != nil && controller.UID == md.UID
}
