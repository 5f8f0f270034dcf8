package main

import (
	"context"
	"errors"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

const (
	statusManager = "flotilla-status"
	podModelField = "model"
)

// reconciler makes the children and the status of a ModelDeployment equal to its plan. A steady one costs no call.
type reconciler struct {
	client.Client
	// live reads past the cache, which holds only what carries our label.
	live client.Reader
}

func (r *reconciler) setUp(ctx context.Context, mgr ctrl.Manager, workers int) error {
	byModel := func(pod client.Object) []string { return []string{pod.GetLabels()[labelModel]} }
	if err := mgr.GetFieldIndexer().IndexField(ctx, &corev1.Pod{}, podModelField, byModel); err != nil {
		return err
	}
	toModel := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, pod client.Object) []reconcile.Request {
		name := types.NamespacedName{Namespace: pod.GetNamespace(), Name: pod.GetLabels()[labelModel]}
		return []reconcile.Request{{NamespacedName: name}}
	})
	return ctrl.NewControllerManagedBy(mgr).
		For(&ModelDeployment{}).
		Owns(&appsv1.Deployment{}).
		Owns(&corev1.Service{}).
		Owns(&policyv1.PodDisruptionBudget{}).
		Watches(&corev1.Pod{}, toModel).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers}).
		Complete(r)
}

func (r *reconciler) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	md := &ModelDeployment{}
	if err := r.Get(ctx, request.NamespacedName, md); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if md.DeletionTimestamp != nil {
		return reconcile.Result{}, nil
	}
	err := r.converge(ctx, md)
	var taken *nameTaken
	if err != nil && !errors.As(err, &taken) {
		return reconcile.Result{}, err
	}
	// The status of a child that belongs to somebody else is tried again with the usual backoff.
	return reconcile.Result{}, errors.Join(err, r.writeStatus(ctx, md, taken))
}

// converge applies and prunes the children; a nameTaken says that one of their names belongs to somebody else.
func (r *reconciler) converge(ctx context.Context, md *ModelDeployment) error {
	children, err := plan(md)
	if err != nil {
		return err
	}
	for _, wanted := range children {
		if err := r.ensure(ctx, md, wanted); err != nil {
			return err
		}
	}
	if replicas(md) > 1 {
		return nil
	}
	budget := &policyv1.PodDisruptionBudget{}
	if err := r.Get(ctx, client.ObjectKeyFromObject(md), budget); err != nil || !controlledBy(budget, md) {
		return client.IgnoreNotFound(err)
	}
	return client.IgnoreNotFound(r.Delete(ctx, budget, client.Preconditions{UID: &budget.UID}))
}

func (r *reconciler) ensure(ctx context.Context, md *ModelDeployment, wanted child) error {
	live, key := wanted.empty(), client.ObjectKeyFromObject(md)
	err := r.Get(ctx, key, live)
	if apierrors.IsNotFound(err) && wanted.mergesWithStrangers() {
		err = r.live.Get(ctx, key, live)
	}
	exists := err == nil
	switch {
	case client.IgnoreNotFound(err) != nil:
		return err
	case exists && !controlledBy(live, md):
		return &nameTaken{kind: wanted.kind, name: key.Name}
	case exists && wanted.matches(live):
		return nil
	}
	options := []client.ApplyOption{client.FieldOwner(managedBy)}
	if exists {
		options = append(options, client.ForceOwnership)
	}
	if err := r.Apply(ctx, wanted.config, options...); err != nil {
		if !exists && apierrors.IsConflict(err) {
			return &nameTaken{kind: wanted.kind, name: key.Name}
		}
		return err
	}
	log.FromContext(ctx).Info("child applied", "child", wanted.kind+" "+key.String())
	return nil
}

func (r *reconciler) writeStatus(ctx context.Context, md *ModelDeployment, taken *nameTaken) error {
	live := &appsv1.Deployment{}
	if err := r.Get(ctx, client.ObjectKeyFromObject(md), live); client.IgnoreNotFound(err) != nil {
		return err
	}
	pods := &corev1.PodList{}
	if err := r.List(ctx, pods, client.InNamespace(md.Namespace), client.MatchingFields{podModelField: md.Name}); err != nil {
		return err
	}
	wanted := status(md, live, pods.Items, taken)
	if equality.Semantic.DeepEqual(md.Status, wanted) {
		return nil
	}
	config := &ModelDeploymentApplyConfiguration{
		ObjectMetaApplyConfiguration: (&metav1ac.ObjectMetaApplyConfiguration{}).
			WithName(md.Name).WithNamespace(md.Namespace).WithUID(md.UID).WithResourceVersion(md.ResourceVersion),
		Status: &wanted,
	}
	config.WithKind(modelDeploymentKind).WithAPIVersion(groupVersion.String())
	return r.Status().Apply(ctx, config, client.FieldOwner(statusManager), client.ForceOwnership)
}
